//! What the pages say of the tests is true.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

use std::path::{Path, PathBuf};

/// All files below that hold tests.
fn sources(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in directory.read_dir().unwrap().flatten() {
        let path = entry.path();
        let name = entry.file_name();
        if path.is_dir() && name != "target" {
            sources(&path, found);
        } else if path
            .extension()
            .is_some_and(|suffix| suffix == "rs" || suffix == "py")
        {
            found.push(path);
        }
    }
}

#[test]
fn every_test_that_is_named_as_a_proof_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut files = Vec::new();
    for directory in ["crates", "tests"] {
        sources(&root.join(directory), &mut files);
    }
    let texts = files
        .iter()
        .map(|file| std::fs::read_to_string(file).unwrap());
    let all = texts.collect::<Vec<_>>().join("\n");
    let page = std::fs::read_to_string(root.join("docs/what-cannot-happen.md")).unwrap();
    let words = page.split('`').skip(1).step_by(2);
    let is_test = |word: &&str| {
        let letters = word
            .chars()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
        letters && word.matches('_').count() >= 3
    };
    let named: Vec<_> = words.filter(is_test).collect();
    assert!(named.len() > 40, "{named:?}");
    let is_missing = |name: &&&str| {
        let [rust, python] = [format!("fn {name}("), format!("def {name}(")];
        !all.contains(&rust) && !all.contains(&python)
    };
    let missing: Vec<_> = named.iter().filter(is_missing).collect();
    assert!(missing.is_empty(), "{missing:#?}");
}

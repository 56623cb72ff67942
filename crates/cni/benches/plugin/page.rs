//! `docs/benchmarks.md`: people's words, and between marks what was measured last.
//!
//! A mark is `<!-- measured: NAME -->`, its end `<!-- end -->`. What stands outside of them is never touched.

use std::path::{Path, PathBuf};

/// Where the page and its pictures are.
fn docs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs")
}

/// Puts each text between the marks of its name.
///
/// # Errors
/// A mark that is missing; nothing is written then.
pub fn fill(texts: &[(&str, String)]) -> Result<(), String> {
    let path = docs().join("benchmarks.md");
    let told = |error: std::io::Error| format!("{}: {error}", path.display());
    let mut page = std::fs::read_to_string(&path).map_err(told)?;
    for (name, text) in texts {
        let mark = format!("<!-- measured: {name} -->\n");
        let missing = || format!("{}: {mark:?} with an end is missing", path.display());
        let begin = page.find(&mark).ok_or_else(missing)? + mark.len();
        let length = page[begin..].find("<!-- end -->").ok_or_else(missing)?;
        page.replace_range(begin..begin + length, &format!("\n{}\n\n", text.trim()));
    }
    std::fs::write(&path, page).map_err(told)
}

/// Writes a picture that the page shows.
///
/// # Errors
/// What the file system says.
pub fn draw(name: &str, picture: &str) -> Result<(), String> {
    let path = docs().join("benchmarks").join(name);
    std::fs::create_dir_all(docs().join("benchmarks"))
        .and_then(|()| std::fs::write(&path, picture))
        .map_err(|error| format!("{}: {error}", path.display()))
}

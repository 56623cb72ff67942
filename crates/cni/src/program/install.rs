//! `podspan-cni install <dir>`: the executable under its own name and those of the reference plugins whose place it takes.
//! `podspan-cni uninstall <dir>` takes them away.
//!
//! Each name appears by rename, whole or not at all: a runtime that starts a plugin meanwhile gets the old one or the new one,
//! and an executable that runs stays as it is. A file that is somebody else's is left alone unless `--force` says otherwise: a
//! name that is a link to us is ours. Another version is installed the same way, an older one too; names that it does not know
//! go.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::Program;

/// Our own name.
const OWN_NAME: &str = "podspan-cni";

/// What to do with a file of somebody else's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Foreign {
    /// Leave it and say so.
    Keep,
    /// Put ours in its place.
    Replace,
}

/// What became of the names.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Installed {
    /// Those that are ours now.
    pub made: Vec<PathBuf>,
    /// Those of somebody else, left alone.
    pub kept: Vec<PathBuf>,
    /// Those of another version, which this one does not have.
    pub removed: Vec<PathBuf>,
}

/// Copies `executable` into `dir` and links the other names to the copy.
///
/// # Errors
/// What the file system answered, with the file.
pub fn install(executable: &Path, dir: &Path, foreign: Foreign) -> io::Result<Installed> {
    let mut installed = Installed::default();
    let own = dir.join(OWN_NAME);
    let draft = draft_of(&own);
    // Never written in place: it may be running, and a runtime may start it now.
    remove_if_there(&draft)?;
    told(&draft, copy(executable, &draft))?;
    told(&own, fs::rename(&draft, &own))?;
    installed.made.push(own);
    for (name, _) in Program::REFERENCE {
        let path = dir.join(name);
        let is_free = is_ours(&path)
            || matches!(path.symlink_metadata(), Err(error) if error.kind() == io::ErrorKind::NotFound);
        if !is_free && foreign == Foreign::Keep {
            installed.kept.push(path);
            continue;
        }
        let draft = draft_of(&path);
        remove_if_there(&draft)?;
        told(&draft, std::os::unix::fs::symlink(OWN_NAME, &draft))?;
        told(&path, fs::rename(&draft, &path))?;
        installed.made.push(path);
    }
    let names: BTreeSet<_> = installed.made.iter().collect();
    let links = links_to_us(dir)?.into_iter();
    for path in links.filter(|path| !names.contains(path)) {
        remove_if_there(&path)?;
        installed.removed.push(path);
    }
    told(dir, File::open(dir).and_then(|dir| dir.sync_all()))?;
    Ok(installed)
}

/// Removes what [`install`] put into `dir`, the executable last, and tells what went; somebody else's files stay.
///
/// # Errors
/// What the file system answered, with the file; what can be removed is, nevertheless.
pub fn uninstall(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let own = dir.join(OWN_NAME);
    let links = match links_to_us(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        links => links?,
    };
    let is_there = own.symlink_metadata().is_ok();
    let mut removed = Vec::new();
    let mut failed = Ok(());
    for path in links.into_iter().chain(is_there.then_some(own)) {
        match remove_if_there(&path) {
            Ok(()) => removed.push(path),
            Err(error) => failed = Err(error),
        }
    }
    failed.map(|()| removed)
}

/// A copy that runs, and is on the disk: a node that loses power behind the rename has a whole plugin.
fn copy(executable: &Path, draft: &Path) -> io::Result<()> {
    let mut from = File::open(executable)?;
    let mut to = File::create_new(draft)?;
    io::copy(&mut from, &mut to)?;
    to.set_permissions(fs::Permissions::from_mode(0o755))?;
    to.sync_all()
}

/// The links to our executable, sorted; drafts that a kill left are among them.
fn links_to_us(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut links = Vec::new();
    for entry in told(dir, fs::read_dir(dir))? {
        let path = told(dir, entry)?.path();
        if is_ours(&path) {
            links.push(path);
        }
    }
    links.sort();
    Ok(links)
}

fn is_ours(path: &Path) -> bool {
    fs::read_link(path).is_ok_and(|target| target == Path::new(OWN_NAME))
}

fn draft_of(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.new"))
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => told(path, Err(error)),
        _ => Ok(()),
    }
}

fn told<T>(path: &Path, outcome: io::Result<T>) -> io::Result<T> {
    outcome.map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_foreign_plugin_is_left_alone_unless_told_and_a_second_time_is_the_same() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("bin");
        fs::create_dir(&dir).unwrap();
        let executable = temp.path().join("podspan-cni");
        fs::write(&executable, "ours").unwrap();
        fs::write(dir.join("bridge"), "theirs").unwrap();
        for _ in 0..2 {
            let installed = install(&executable, &dir, Foreign::Keep).unwrap();
            assert_eq!(installed.kept, [dir.join("bridge")]);
            assert_eq!(fs::read_to_string(dir.join("bridge")).unwrap(), "theirs");
            assert_eq!(fs::read_to_string(dir.join("loopback")).unwrap(), "ours");
        }
        let installed = install(&executable, &dir, Foreign::Replace).unwrap();
        let all = 1 + Program::REFERENCE.len();
        assert_eq!((installed.made.len(), installed.kept.len()), (all, 0));
        assert_eq!(fs::read_to_string(dir.join("bridge")).unwrap(), "ours");
        assert_eq!(
            fs::read_dir(&dir).unwrap().count(),
            all,
            "no drafts are left"
        );
    }

    #[test]
    fn another_version_s_names_go_and_uninstalling_leaves_what_is_somebody_else_s() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("bin");
        fs::create_dir(&dir).unwrap();
        let executable = temp.path().join("podspan-cni");
        fs::write(&executable, "ours").unwrap();
        fs::write(dir.join("bridge"), "theirs").unwrap();
        for (name, target) in [
            ("of-a-later-version", OWN_NAME),
            (".loopback.new", OWN_NAME),
            ("vlan", "macvlan"),
        ] {
            std::os::unix::fs::symlink(target, dir.join(name)).unwrap();
        }
        fs::write(dir.join(".podspan-cni.new"), "half").unwrap();
        let installed = install(&executable, &dir, Foreign::Keep).unwrap();
        assert_eq!(installed.removed, [dir.join("of-a-later-version")]);
        assert_eq!(fs::read(dir.join(OWN_NAME)).unwrap(), b"ours");

        let removed = uninstall(&dir).unwrap();
        assert_eq!(removed.len(), installed.made.len());
        let left = fs::read_dir(&dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name());
        let mut left: Vec<_> = left.collect();
        left.sort();
        assert_eq!(left, ["bridge", "vlan"]);
        assert!(uninstall(&dir).unwrap().is_empty() && uninstall(temp.path()).is_ok());
    }
}

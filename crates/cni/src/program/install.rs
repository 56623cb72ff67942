//! `podspan-cni install <dir>`: the executable under its own name and those of the reference plugins whose place it takes.
//!
//! Each name appears by rename, whole or not at all; an executable that runs stays as it is. A file that is somebody
//! else's is left alone unless `--force` says otherwise: a name that is a link to us, or was copied from us, is ours.

use std::fs;
use std::io;
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
}

/// Copies `executable` into `dir` and links the other names to the copy.
///
/// # Errors
/// What the file system answered, with the file.
pub fn install(executable: &Path, dir: &Path, foreign: Foreign) -> io::Result<Installed> {
    let mut installed = Installed::default();
    let own = dir.join(OWN_NAME);
    let draft = dir.join(format!(".{OWN_NAME}.new"));
    told(&draft, fs::copy(executable, &draft))?;
    told(&own, fs::rename(&draft, &own))?;
    installed.made.push(own);
    for (name, _) in Program::REFERENCE {
        let path = dir.join(name);
        let is_free = match fs::read_link(&path) {
            Ok(target) => target == Path::new(OWN_NAME),
            Err(error) => error.kind() == io::ErrorKind::NotFound,
        };
        if !is_free && foreign == Foreign::Keep {
            installed.kept.push(path);
            continue;
        }
        let draft = dir.join(format!(".{name}.new"));
        match fs::remove_file(&draft) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return told(&draft, Err(error));
            }
            _ => {}
        }
        told(&draft, std::os::unix::fs::symlink(OWN_NAME, &draft))?;
        told(&path, fs::rename(&draft, &path))?;
        installed.made.push(path);
    }
    Ok(installed)
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
        assert_eq!(
            (installed.made.len(), installed.kept.len()),
            (Program::REFERENCE.len() + 1, 0)
        );
        assert_eq!(fs::read_to_string(dir.join("bridge")).unwrap(), "ours");
        assert_eq!(
            fs::read_dir(&dir).unwrap().count(),
            Program::REFERENCE.len() + 1,
            "no drafts are left"
        );
    }
}

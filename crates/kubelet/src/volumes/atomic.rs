//! Writing a volume's files so that a reader sees all old ones or all new ones.
//!
//! Files lie in a folder named by time, `..data` is a link to it that is replaced at once, and the names that a user
//! sees are links through `..data`. Programs rely on these names to notice changes.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Component, Path, PathBuf};

use jiff::Timestamp;

/// One file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    /// Content.
    pub data: Vec<u8>,
    /// Permission bits.
    pub mode: u32,
    /// Owner, where it is not root.
    pub owner: Option<u32>,
}

/// Files by path below the volume.
pub type Payload = BTreeMap<String, File>;

const DATA: &str = "..data";
const NEW_DATA: &str = "..data_tmp";

/// Writes `payload` into `dir`, unless it is there already. Returns whether something changed. Names that would lead
/// out of the volume are refused.
pub fn write(dir: &Path, payload: &Payload) -> io::Result<bool> {
    for path in payload.keys() {
        check(path)?;
    }
    let old = fs::read_link(dir.join(DATA)).ok();
    if let Some(old) = &old
        && read(&dir.join(old))? == contents(payload)
    {
        return Ok(false);
    }
    let name = new_name(dir);
    let target = dir.join(&name);
    fs::create_dir(&target)?;
    fs::set_permissions(&target, fs::Permissions::from_mode(0o755))?;
    for (path, file) in payload {
        let to = target.join(path);
        if let Some(parent) = to.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(&to, &file.data)?;
        if let Some(uid) = file.owner {
            std::os::unix::fs::chown(&to, Some(uid), None)?;
        }
        fs::set_permissions(&to, fs::Permissions::from_mode(file.mode))?;
    }
    let _ = fs::remove_file(dir.join(NEW_DATA));
    symlink(&name, dir.join(NEW_DATA))?;
    fs::rename(dir.join(NEW_DATA), dir.join(DATA))?;
    let wanted: Vec<&str> = payload.keys().filter_map(|p| p.split('/').next()).collect();
    for name in &wanted {
        let link = dir.join(name);
        if fs::symlink_metadata(&link).is_err() {
            symlink(Path::new(DATA).join(name), link)?;
        }
    }
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if entry.file_type()?.is_symlink() && name != DATA && !wanted.contains(&name.as_str()) {
            fs::remove_file(entry.path())?;
        }
    }
    if let Some(old) = old {
        fs::remove_dir_all(dir.join(old))?;
    }
    Ok(true)
}

fn check(path: &str) -> io::Result<()> {
    let plain = Path::new(path).components().all(|c| matches!(c, Component::Normal(_)));
    if path.is_empty() || !plain || path.starts_with("..") {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("invalid path: {path:?}")));
    }
    Ok(())
}

fn contents(payload: &Payload) -> BTreeMap<PathBuf, Vec<u8>> {
    payload.iter().map(|(p, f)| (PathBuf::from(p), f.data.clone())).collect()
}

fn read(dir: &Path) -> io::Result<BTreeMap<PathBuf, Vec<u8>>> {
    let mut found = BTreeMap::new();
    let mut rest = vec![PathBuf::new()];
    while let Some(below) = rest.pop() {
        for entry in fs::read_dir(dir.join(&below))? {
            let entry = entry?;
            let path = below.join(entry.file_name());
            if entry.file_type()?.is_dir() {
                rest.push(path);
            } else {
                found.insert(path, fs::read(entry.path())?);
            }
        }
    }
    Ok(found)
}

fn new_name(dir: &Path) -> String {
    let now = Timestamp::now();
    let base = now.strftime("..%Y_%m_%d_%H_%M_%S").to_string();
    let mut n = u64::try_from(now.subsec_nanosecond()).unwrap_or(0);
    loop {
        let name = format!("{base}.{n:09}");
        if !dir.join(&name).exists() {
            return name;
        }
        n += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(data: &str) -> File {
        File { data: data.as_bytes().to_vec(), mode: 0o644, owner: None }
    }

    #[test]
    fn replaces_all_at_once_and_only_when_something_changed() {
        let dir = tempfile::tempdir().unwrap();
        let payload: Payload = [("a".to_string(), file("1")), ("d/b".to_string(), file("2"))].into();
        assert!(write(dir.path(), &payload).unwrap());
        assert!(!write(dir.path(), &payload).unwrap());
        assert_eq!(fs::read_to_string(dir.path().join("d/b")).unwrap(), "2");
        let changed: Payload = [("a".to_string(), file("3"))].into();
        assert!(write(dir.path(), &changed).unwrap());
        assert_eq!(fs::read_to_string(dir.path().join("a")).unwrap(), "3");
        assert!(!dir.path().join("d").exists());
        // `..data`, its folder and one link.
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3);
    }

    #[test]
    fn names_stay_in_the_volume() {
        let dir = tempfile::tempdir().unwrap();
        for bad in ["", "../x", "/x", "a/../../x", "..data", "./x"] {
            let payload: Payload = [(bad.to_string(), file(""))].into();
            assert!(write(dir.path(), &payload).is_err(), "{bad}");
        }
    }
}

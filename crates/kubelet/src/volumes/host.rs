//! The node's side of volumes: mounts, owners, sub paths, paths of the host.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// Mount points below a folder, deepest first. Reads `/proc/self/mountinfo` (proc(5)).
pub fn mounts_below(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let text = fs::read_to_string("/proc/self/mountinfo")?;
    let mut found: Vec<PathBuf> = text
        .lines()
        .filter_map(|l| l.split(' ').nth(4))
        .map(|p| PathBuf::from(unescape(p)))
        .filter(|p| p.starts_with(dir))
        .collect();
    found.sort_by_key(|p| std::cmp::Reverse(p.as_os_str().len()));
    Ok(found)
}

/// Blanks and the like stand as octal numbers in mountinfo.
fn unescape(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        match rest.get(at + 1..at + 4).and_then(|o| u8::from_str_radix(o, 8).ok()) {
            Some(b) => {
                out.push(char::from(b));
                rest = &rest[at + 4..];
            }
            None => {
                out.push('\\');
                rest = &rest[at + 1..];
            }
        }
    }
    out + rest
}

/// Whether something is mounted at a path.
pub fn is_mounted(path: &Path) -> io::Result<bool> {
    Ok(mounts_below(path)?.iter().any(|p| p == path))
}

/// Mounts memory at a path, where nothing is yet. `size` in bytes, 0 for the kernel's default.
pub fn mount_memory(path: &Path, size: u64) -> io::Result<()> {
    if is_mounted(path)? {
        return Ok(());
    }
    let options = if size == 0 { String::new() } else { format!("size={size}") };
    mount(Some("tmpfs"), path, Some("tmpfs"), MsFlags::empty(), Some(options.as_str()))
        .map_err(io::Error::from)
}

/// Unmounts all below a folder, then removes it. What cannot be unmounted is left, with all that holds it.
pub fn remove(dir: &Path) -> io::Result<()> {
    for point in mounts_below(dir)? {
        umount2(&point, MntFlags::UMOUNT_NOFOLLOW).map_err(|e| {
            io::Error::new(io::Error::from(e).kind(), format!("unmount {}: {e}", point.display()))
        })?;
    }
    match fs::remove_dir_all(dir) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// Gives a volume's files to a group: readable by it, writable too unless `read_only`, and new files inherit it. Links
/// stay whose they are: what counts is what they lead to.
pub fn give_to_group(dir: &Path, group: u32, read_only: bool) -> io::Result<()> {
    let mut rest = vec![dir.to_path_buf()];
    while let Some(path) = rest.pop() {
        let meta = fs::symlink_metadata(&path)?;
        if meta.is_symlink() {
            continue;
        }
        std::os::unix::fs::lchown(&path, None, Some(group))?;
        let mut mask = if read_only { 0o440 } else { 0o660 };
        if meta.is_dir() {
            mask |= 0o2110;
            for entry in fs::read_dir(&path)? {
                rest.push(entry?.path());
            }
        }
        fs::set_permissions(&path, fs::Permissions::from_mode((meta.mode() & 0o7777) | mask))?;
    }
    Ok(())
}

/// Checks a `hostPath` volume's type, and makes what may be made. Texts are v1.20's.
pub fn check_host_path(path: &str, type_: &str) -> Result<(), String> {
    let failed = |what: String| Err(format!("hostPath type check failed: {what}"));
    let found = fs::metadata(path).ok();
    let wrong = |what: &str| failed(format!("{path} is not {what}"));
    match type_ {
        "" => Ok(()),
        "DirectoryOrCreate" => match found {
            Some(m) if m.is_dir() => Ok(()),
            Some(_) => wrong("a directory"),
            None => fs::create_dir_all(path)
                .and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(0o755)))
                .map_err(|e| e.to_string()),
        },
        "Directory" => {
            if found.is_some_and(|m| m.is_dir()) {
                Ok(())
            } else {
                wrong("a directory")
            }
        }
        "FileOrCreate" => match found {
            Some(m) if m.is_file() => Ok(()),
            Some(_) => wrong("a file"),
            None => OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o644)
                .open(path)
                .map(drop)
                .map_err(|e| e.to_string()),
        },
        "File" => {
            if found.is_some_and(|m| m.is_file()) {
                Ok(())
            } else {
                wrong("a file")
            }
        }
        "Socket" => {
            if found.is_some_and(|m| m.file_type().is_socket()) {
                Ok(())
            } else {
                wrong("a socket file")
            }
        }
        "CharDevice" => {
            if found.is_some_and(|m| m.file_type().is_char_device()) {
                Ok(())
            } else {
                wrong("a character device")
            }
        }
        "BlockDevice" => {
            if found.is_some_and(|m| m.file_type().is_block_device()) {
                Ok(())
            } else {
                wrong("a block device")
            }
        }
        other => Err(format!("{other} is an invalid volume type")),
    }
}

/// Makes `sub` of a volume where it is missing and mounts it at `target`, where nothing is yet. The mount is made
/// through an open file whose place has been checked: links that change meanwhile do not lead it astray.
pub fn bind_sub_path(volume: &Path, sub: &str, target: &Path) -> Result<(), String> {
    let text = |e: io::Error| e.to_string();
    if is_mounted(target).map_err(text)? {
        return Ok(());
    }
    let root = fs::canonicalize(volume).map_err(text)?;
    let opened = open_inside(&root, sub)?;
    let source = format!("/proc/self/fd/{}", opened.as_raw_fd());
    if let Some(parent) = target.parent() {
        fs::create_dir_all(parent).map_err(text)?;
    }
    if opened.metadata().map_err(text)?.is_dir() {
        fs::create_dir_all(target).map_err(text)?;
    } else {
        OpenOptions::new().create(true).append(true).open(target).map_err(text)?;
    }
    mount(Some(source.as_str()), target, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)
        .map_err(|e| format!("bind mount of sub path {sub:?}: {e}"))
}

fn open_inside(root: &Path, sub: &str) -> Result<File, String> {
    let open =
        |path: &Path| OpenOptions::new().read(true).custom_flags(libc::O_PATH | libc::O_CLOEXEC).open(path);
    let inside = |file: &File| -> Result<(), String> {
        let place =
            fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).map_err(|e| e.to_string())?;
        if place.starts_with(root) {
            Ok(())
        } else {
            Err(format!("subpath {:?} not within volume path {:?}", place, root))
        }
    };
    let full = root.join(sub);
    if fs::symlink_metadata(&full).is_err() {
        // Make what is missing below the deepest part that is there.
        let mut missing: Vec<&std::ffi::OsStr> = Vec::new();
        let mut there = full.as_path();
        while fs::symlink_metadata(there).is_err() {
            let (Some(name), Some(parent)) = (there.file_name(), there.parent()) else { break };
            missing.push(name);
            there = parent;
        }
        let base = open(there).map_err(|e| e.to_string())?;
        inside(&base)?;
        let mode = fs::metadata(root).map_err(|e| e.to_string())?.mode() & 0o7777;
        let mut path = PathBuf::from(format!("/proc/self/fd/{}", base.as_raw_fd()));
        for name in missing.iter().rev() {
            path.push(name);
            match fs::create_dir(&path) {
                Ok(()) => {
                    fs::set_permissions(&path, fs::Permissions::from_mode(mode)).map_err(|e| e.to_string())?
                }
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(e.to_string()),
            }
        }
    }
    let file = open(&full).map_err(|e| e.to_string())?;
    inside(&file)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_paths_are_checked_or_made() {
        let dir = tempfile::tempdir().unwrap();
        let path = |n: &str| dir.path().join(n).display().to_string();
        fs::write(path("f"), "").unwrap();
        assert!(check_host_path(&path("f"), "Directory").unwrap_err().ends_with("f is not a directory"));
        assert!(check_host_path(&path("none"), "File").unwrap_err().ends_with("none is not a file"));
        assert_eq!(check_host_path(&path("new/dir"), "DirectoryOrCreate"), Ok(()));
        assert!(Path::new(&path("new/dir")).is_dir());
        assert_eq!(check_host_path(&path("nf"), "FileOrCreate"), Ok(()));
        assert_eq!(check_host_path("/dev/null", "CharDevice"), Ok(()));
        assert!(check_host_path("/dev/null", "BlockDevice").is_err());
    }

    #[test]
    fn sub_paths_stay_inside() {
        let dir = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(dir.path()).unwrap().join("v");
        fs::create_dir(&root).unwrap();
        assert!(open_inside(&root, "a/b").is_ok());
        assert!(root.join("a/b").is_dir());
        std::os::unix::fs::symlink("/etc", root.join("out")).unwrap();
        assert!(open_inside(&root, "out").unwrap_err().contains("not within volume path"));
        assert!(open_inside(&root, "out/made").is_err());
        assert!(!Path::new("/etc/made").exists());
    }

    #[test]
    fn a_group_gets_its_files() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("f"), "").unwrap();
        fs::set_permissions(dir.path().join("f"), fs::Permissions::from_mode(0o600)).unwrap();
        let group = 4321;
        std::os::unix::fs::symlink("f", dir.path().join("link")).unwrap();
        give_to_group(dir.path(), group, false).unwrap();
        assert_eq!(fs::metadata(dir.path().join("f")).unwrap().gid(), group);
        assert_ne!(fs::symlink_metadata(dir.path().join("link")).unwrap().gid(), group);
        assert_eq!(fs::metadata(dir.path().join("f")).unwrap().mode() & 0o7777, 0o660);
        assert_eq!(fs::metadata(dir.path()).unwrap().mode() & 0o2070, 0o2070);
    }

    #[test]
    fn mountinfo_names() {
        assert_eq!(unescape("/a\\040b\\x"), "/a b\\x");
    }
}

//! Mounts below a folder.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use nix::mount::{MntFlags, umount2};

/// Unmounts all that is mounted below `dir`, innermost first. An error where something is still mounted afterwards:
/// removing the folder would then remove what is mounted there.
pub(super) fn unmount_below(dir: &Path) -> anyhow::Result<()> {
    // A detached mount vanishes from the table at once; a second look finds what appeared meanwhile.
    for _ in 0..3 {
        let mounts = mounted(dir)?;
        if mounts.is_empty() {
            return Ok(());
        }
        for mount in mounts.iter().rev() {
            let flags = MntFlags::UMOUNT_NOFOLLOW;
            if umount2(mount, flags).is_err()
                && let Err(e) = umount2(mount, flags | MntFlags::MNT_DETACH)
            {
                tracing::warn!(mount = %mount.display(), "{e}");
            }
        }
    }
    match mounted(dir)?.first() {
        Some(mount) => bail!("{} cannot be unmounted", mount.display()),
        None => Ok(()),
    }
}

fn mounted(dir: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let table = fs::read_to_string("/proc/self/mountinfo").context("/proc/self/mountinfo")?;
    Ok(below(&table, dir))
}

/// Mount points below `dir`, in the order of the table, which is that of mounting.
fn below(table: &str, dir: &Path) -> Vec<PathBuf> {
    table
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(|point| PathBuf::from(unescape(point)))
        .filter(|point| point != dir && point.starts_with(dir))
        .collect()
}

/// The kernel writes blanks, tabs, newlines and backslashes as three octal digits.
fn unescape(text: &str) -> String {
    let mut out = Vec::new();
    let mut bytes = text.as_bytes();
    while let Some((&b, rest)) = bytes.split_first() {
        bytes = rest;
        let octal = rest
            .get(..3)
            .and_then(|d| std::str::from_utf8(d).ok())
            .and_then(|d| u8::from_str_radix(d, 8).ok());
        match octal {
            Some(value) if b == b'\\' => {
                out.push(value);
                bytes = &rest[3..];
            }
            _ => out.push(b),
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_below_a_folder() {
        let table = "\
22 1 254:0 / / rw - ext4 /dev/vda rw
30 22 0:5 / /data/kubelet/pods/u/volumes/a rw - tmpfs tmpfs rw
31 22 0:6 / /data/with\\040blank\\134 rw - tmpfs tmpfs rw
32 22 0:6 / /database rw - tmpfs tmpfs rw
33 22 0:6 / /data rw - tmpfs tmpfs rw
";
        let found = below(table, Path::new("/data"));
        assert_eq!(
            found,
            [PathBuf::from("/data/kubelet/pods/u/volumes/a"), PathBuf::from("/data/with blank\\")]
        );
    }
}

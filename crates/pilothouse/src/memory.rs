//! Memory that only the start has needed.

use std::ffi::c_void;
use std::fs;
use std::num::NonZeroUsize;
use std::path::Path;
use std::ptr::NonNull;
use std::time::Duration;

use nix::sys::mman::{MmapAdvise, madvise};

/// Until a component serves, and then until a whole cluster does.
const PAUSES: [Duration; 2] = [Duration::from_secs(2), Duration::from_secs(28)];

/// Gives back, some time from now, the pages of the program's own code that have been read until then: most is of use
/// but once, and what is needed again is mapped again from the page cache. An idle API server is left with half of its
/// resident memory.
pub fn give_back_code_later() {
    std::thread::spawn(|| {
        for pause in PAUSES {
            std::thread::sleep(pause);
            give_back_code();
        }
    });
}

fn give_back_code() {
    let (Ok(maps), Ok(own)) = (fs::read_to_string("/proc/self/maps"), fs::read_link("/proc/self/exe")) else {
        return;
    };
    for (start, length) in maps.lines().filter_map(|line| code(line, &own)) {
        let Some(start) = NonZeroUsize::new(start) else { continue };
        let start = NonNull::<c_void>::without_provenance(start);
        #[expect(
            unsafe_code,
            reason = "pages of a mapping of a file that cannot be written to come back as they were"
        )]
        // SAFETY: the range is a whole mapping of this program's file, readable and executable but not writable.
        let done = unsafe { madvise(start, length, MmapAdvise::MADV_DONTNEED) };
        if let Err(e) = done {
            tracing::debug!("code cannot be given back: {e}");
        }
    }
}

/// Start and length of a mapping of the program's code, from a line of `/proc/self/maps` (proc(5)).
fn code(line: &str, own: &Path) -> Option<(usize, usize)> {
    let mut fields = line.splitn(6, ' ');
    let (start, end) = fields.next()?.split_once('-')?;
    let is_code = fields.next()? == "r-xp";
    let file = fields.nth(3)?.trim_start();
    let (start, end) = (usize::from_str_radix(start, 16).ok()?, usize::from_str_radix(end, 16).ok()?);
    (is_code && Path::new(file) == own).then_some((start, end.checked_sub(start)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_programs_code_is_meant() {
        let own = Path::new("/opt/kubernetes/bin/pilot house");
        let line = |range: &str, mode: &str, file: &str| format!("{range} {mode} 00001000 fe:00 131 {file}");
        let file = "                    /opt/kubernetes/bin/pilot house";
        assert_eq!(code(&line("1000-3000", "r-xp", file), own), Some((0x1000, 0x2000)));
        assert_eq!(code(&line("1000-3000", "r--p", file), own), None);
        assert_eq!(code(&line("1000-3000", "r-xp", "    /usr/lib/libc.so.6"), own), None);
        assert_eq!(
            code("7ffc0000-7ffc1000 r-xp 00000000 00:00 0                          [vdso]", own),
            None
        );
        assert_eq!(code("7f00-7f10 rw-p 00000000 00:00 0", own), None);
        assert_eq!(code("", own), None);
    }
}

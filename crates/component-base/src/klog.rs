//! klog's log files: `--log-dir` holds `<program>.<host>.<user>.log.<SEVERITY>.<time>.<pid>` for each severity, with a
//! link `<program>.<SEVERITY>` to the newest, and a line goes to the file of its severity and of each below. The form
//! of the lines is klog's too: <https://pkg.go.dev/k8s.io/klog/v2>.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Zoned;
use parking_lot::Mutex;
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, MakeWriter};
use tracing_subscriber::registry::LookupSpan;

/// The file where the directory decides begins anew at this size, in bytes.
pub const MAX_SIZE: u64 = 1800 << 20;

const SEVERITIES: [&str; 3] = ["INFO", "WARNING", "ERROR"];

/// Where lines go.
#[derive(Debug, Clone)]
pub enum Place {
    /// A file for each severity, in a directory.
    Directory(PathBuf),
    /// One file, and the size in bytes at which it begins anew; 0 for no limit.
    File(PathBuf, u64),
}

/// How lines are spread.
#[derive(Debug, Clone)]
pub struct Options {
    /// Program name.
    pub program: String,
    /// Where to.
    pub place: Place,
    /// A line goes to its severity's file only.
    pub one_output: bool,
    /// Lines of this severity (0 info, 1 warning, 2 error) and above go to standard error too.
    pub stderr_threshold: usize,
    /// No heading at the top of files.
    pub skip_log_headers: bool,
}

#[derive(Debug, Default)]
struct Open {
    file: Option<File>,
    size: u64,
}

/// The open files. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Files {
    options: Arc<Options>,
    open: Arc<Mutex<[Open; 3]>>,
}

impl Files {
    /// Opens the file for severity `INFO`, so that a place that cannot be written is an error now.
    pub fn open(options: Options) -> io::Result<Files> {
        let files = Files { options: Arc::new(options), open: Arc::default() };
        files.begin(&mut files.open.lock()[0], 0)?;
        Ok(files)
    }

    fn begin(&self, open: &mut Open, severity: usize) -> io::Result<()> {
        let named = |path: &Path, e: io::Error| io::Error::new(e.kind(), format!("{}: {e}", path.display()));
        let o = &self.options;
        let now = Zoned::now();
        let path = match &o.place {
            Place::File(path, _) => path.clone(),
            Place::Directory(dir) => {
                fs::create_dir_all(dir).map_err(|e| named(dir, e))?;
                let tag = SEVERITIES[severity];
                let name = format!(
                    "{}.{}.{}.log.{tag}.{}.{}",
                    o.program,
                    host(),
                    user(),
                    now.strftime("%Y%m%d-%H%M%S"),
                    std::process::id()
                );
                let link = dir.join(format!("{}.{tag}", o.program));
                let _ = fs::remove_file(&link);
                std::os::unix::fs::symlink(&name, &link).map_err(|e| named(&link, e))?;
                dir.join(name)
            }
        };
        let anew = open.file.is_some() && matches!(o.place, Place::File(..));
        let mut file = OpenOptions::new()
            .create(true)
            .write(true)
            .append(!anew)
            .truncate(anew)
            .open(&path)
            .map_err(|e| named(&path, e))?;
        let mut size = file.metadata()?.len();
        if !o.skip_log_headers {
            let heading = format!(
                "Log file created at: {}\nRunning on machine: {}\nBinary: Built with Rust for {}/{}\n\
                 Log line format: [IWEF]mmdd hh:mm:ss.uuuuuu threadid file:line] msg\n",
                now.strftime("%Y/%m/%d %H:%M:%S"),
                host(),
                std::env::consts::OS,
                std::env::consts::ARCH
            );
            file.write_all(heading.as_bytes())?;
            size += heading.len() as u64;
        }
        *open = Open { file: Some(file), size };
        Ok(())
    }

    fn write(&self, severity: usize, line: &[u8]) -> io::Result<()> {
        let o = &self.options;
        if severity >= o.stderr_threshold {
            io::stderr().write_all(line)?;
        }
        let (targets, limit) = match &o.place {
            Place::File(_, limit) => (0..=0, *limit),
            Place::Directory(_) if o.one_output => (severity..=severity, MAX_SIZE),
            Place::Directory(_) => (0..=severity, MAX_SIZE),
        };
        let mut open = self.open.lock();
        for s in targets {
            let open = &mut open[s];
            if open.file.is_none() || (limit > 0 && open.size + line.len() as u64 > limit) {
                self.begin(open, s)?;
            }
            if let Some(file) = &mut open.file {
                file.write_all(line)?;
                open.size += line.len() as u64;
            }
        }
        Ok(())
    }
}

/// Writes one event's line.
#[derive(Debug)]
pub struct Line<'a>(&'a Files, usize);

impl Write for Line<'_> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.write(self.1, line)?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Files {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line(self, 0)
    }

    fn make_writer_for(&'a self, meta: &Metadata<'_>) -> Line<'a> {
        Line(self, severity(meta.level()))
    }
}

fn severity(level: &Level) -> usize {
    match *level {
        Level::ERROR => 2,
        Level::WARN => 1,
        _ => 0,
    }
}

/// `I0102 15:04:05.000000    1234 file.rs:56] message key=value`, or without what is left of the message.
#[derive(Debug, Clone, Copy)]
pub struct Format {
    /// Without time and place.
    pub skip_headers: bool,
}

impl<S, N> FormatEvent<S, N> for Format
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        ctx: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        if !self.skip_headers {
            let meta = event.metadata();
            let letter = ['I', 'W', 'E'][severity(meta.level())];
            let now = Zoned::now().strftime("%m%d %H:%M:%S%.6f").to_string();
            let file = meta.file().and_then(|f| f.rsplit('/').next()).unwrap_or("unknown");
            let (pid, line) = (std::process::id(), meta.line().unwrap_or(1));
            write!(writer, "{letter}{now} {pid:>7} {file}:{line}] ")?;
        }
        ctx.field_format().format_fields(writer.by_ref(), event)?;
        writeln!(writer)
    }
}

fn host() -> String {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    match name.trim().split('.').next() {
        Some(n) if !n.is_empty() => n.to_string(),
        _ => "unknownhost".to_string(),
    }
}

fn user() -> String {
    let uid = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let uid = uid.lines().find_map(|l| l.strip_prefix("Uid:")).and_then(|l| l.split_whitespace().next());
    let users = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let name = users.lines().find_map(|l| {
        let mut fields = l.split(':');
        let name = fields.next()?;
        (fields.nth(1) == uid).then(|| name.to_string())
    });
    name.unwrap_or_else(|| "unknownuser".to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tracing_subscriber::layer::SubscriberExt;

    fn options(place: Place) -> Options {
        Options {
            program: "kube-x".into(),
            place,
            one_output: false,
            stderr_threshold: 9,
            skip_log_headers: false,
        }
    }

    #[test]
    fn a_file_for_each_severity() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::open(options(Place::Directory(dir.path().into()))).unwrap();
        assert!(!dir.path().join("kube-x.ERROR").exists());
        let layer = tracing_subscriber::fmt::layer()
            .with_ansi(false)
            .event_format(Format { skip_headers: false })
            .with_writer(files);
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            tracing::info!(n = 1, "calm");
            tracing::error!("loud");
        });
        let read = |s: &str| fs::read_to_string(dir.path().join(format!("kube-x.{s}"))).unwrap();
        assert!(read("INFO").contains("] calm n=1\n") && read("INFO").contains("] loud\n"));
        assert!(read("ERROR").starts_with("Log file created at: ") && !read("ERROR").contains("calm"));
        assert!(read("WARNING").contains("klog.rs:"));
        let line = read("ERROR").lines().last().unwrap().to_string();
        assert!(line.starts_with('E') && line.as_bytes()[5] == b' ', "{line}");
        let target = fs::read_link(dir.path().join("kube-x.INFO")).unwrap().display().to_string();
        assert!(target.starts_with("kube-x.") && target.contains(".log.INFO."), "{target}");
    }

    #[test]
    fn one_file_begins_anew_at_its_size() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut o = options(Place::File(path.clone(), 20));
        o.skip_log_headers = true;
        let files = Files::open(o).unwrap();
        files.write(0, b"0123456789\n").unwrap();
        files.write(2, b"abcdefghij\n").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "abcdefghij\n");
        let e = Files::open(options(Place::File(dir.path().join("no/log"), 0))).unwrap_err();
        assert!(e.to_string().contains("no/log: "), "{e}");
    }
}

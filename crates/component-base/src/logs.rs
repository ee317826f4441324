//! Logs: `tracing`, with klog's flags. `-v=N` widens what is shown (0–4 info, 5–7 debug, 8 and more trace of our own
//! crates); `--logtostderr=false` writes klog's files ([`crate::klog`]) instead of standard error.

use std::io;
use std::path::{Path, PathBuf};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::writer::BoxMakeWriter;

use crate::flags::Flags;
use crate::klog::{Files, Format, Options, Place};

/// Sets up logging for the process from klog's flags. `PILOTHOUSE_LOG` (the syntax of `RUST_LOG`) wins over `-v`.
/// Calling it a second time in one process does nothing. Says whether logs go to files.
pub fn init(component: &str, flags: &Flags) -> io::Result<bool> {
    // Lines are written at once.
    flags.given("log-flush-frequency");
    let skip_headers = flags.bool("skip-headers");
    let options = file_options(component, flags)?;
    let filter = filter(flags.int("v"));
    match options {
        None => {
            init_with(component, flags.int("v"), None)?;
            Ok(false)
        }
        Some(options) => {
            let _ = tracing_subscriber::fmt()
                .with_env_filter(filter)
                .with_ansi(false)
                .event_format(Format { skip_headers })
                .with_writer(Files::open(options)?)
                .try_init();
            Ok(true)
        }
    }
}

/// Where klog's flags send lines; `None` for standard error alone.
fn file_options(component: &str, flags: &Flags) -> io::Result<Option<Options>> {
    let (dir, file, size) =
        (flags.opt("log-dir"), flags.opt("log-file"), flags.int("log-file-max-size").unsigned_abs() << 20);
    let (also, threshold) = (flags.bool("alsologtostderr"), flags.string("stderrthreshold"));
    let (one_output, skip_log_headers) = (flags.bool("one-output"), flags.bool("skip-log-headers"));
    let stderr_threshold = match threshold.to_uppercase().as_str() {
        "0" | "INFO" => 0,
        "1" | "WARNING" => 1,
        "2" | "ERROR" => 2,
        "3" | "FATAL" => 3,
        _ => {
            let e = format!("--stderrthreshold={threshold}: INFO, WARNING, ERROR or FATAL");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, e));
        }
    };
    if flags.bool("logtostderr") {
        return Ok(None);
    }
    let place = match (file, dir) {
        (Some(file), _) => Place::File(PathBuf::from(file), size),
        (None, Some(dir)) => Place::Directory(PathBuf::from(dir)),
        (None, None) => Place::Directory(std::env::temp_dir()),
    };
    Ok(Some(Options {
        program: component.to_string(),
        place,
        one_output,
        stderr_threshold: if also { 0 } else { stderr_threshold },
        skip_log_headers,
    }))
}

/// Sets up logging from a verbosity and a directory (standard error where there is none).
pub fn init_with(component: &str, verbosity: i64, dir: Option<&Path>) -> io::Result<()> {
    let builder = tracing_subscriber::fmt().with_env_filter(filter(verbosity)).with_ansi(false);
    let _ = match dir {
        None => builder.with_writer(BoxMakeWriter::new(io::stderr)).try_init(),
        Some(dir) => {
            let options = Options {
                program: component.to_string(),
                place: Place::Directory(dir.to_path_buf()),
                one_output: false,
                stderr_threshold: 2,
                skip_log_headers: false,
            };
            let files = Files::open(options)?;
            builder.event_format(Format { skip_headers: false }).with_writer(files).try_init()
        }
    };
    Ok(())
}

fn filter(verbosity: i64) -> EnvFilter {
    let level = match verbosity {
        i64::MIN..=4 => "info",
        5..=7 => "debug",
        _ => "trace",
    };
    EnvFilter::new(std::env::var("PILOTHOUSE_LOG").unwrap_or_else(|_| {
        format!(
            "warn,kube_client=off,kube_runtime=off,{}",
            OUR_CRATES.map(|c| format!("pilothouse_{c}={level}")).join(",")
        )
    }))
}

const OUR_CRATES: [&str; 11] = [
    "apiserver",
    "store",
    "api",
    "client",
    "component_base",
    "controller_manager",
    "scheduler",
    "kubelet",
    "proxy",
    "dns",
    "pki",
];

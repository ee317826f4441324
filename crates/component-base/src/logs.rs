//! Logs: `tracing`, with klog's flags. `-v=N` widens what is shown (0–1 info, 2–4 debug, 5 and more trace of our own
//! crates); `--logtostderr=false --log-dir=DIR` writes `DIR/<component>.INFO` instead of standard error.

use std::fs::OpenOptions;
use std::path::Path;
use std::sync::Mutex;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::writer::BoxMakeWriter;

use crate::flags::Flags;

/// Sets up logging for the process from klog's flags. `PILOTHOUSE_LOG` (the syntax of `RUST_LOG`) wins over `-v`.
/// Calling it a second time in one process does nothing.
pub fn init(component: &str, flags: &Flags) -> std::io::Result<()> {
    for f in ["alsologtostderr", "skip-headers", "skip-log-headers", "stderrthreshold", "log-flush-frequency"]
    {
        flags.given(f);
    }
    let dir = flags.opt("log-dir").filter(|_| !flags.bool("logtostderr"));
    init_with(component, flags.int("v"), dir.as_deref().map(Path::new))
}

/// Sets up logging from a verbosity and a directory (standard error where there is none).
pub fn init_with(component: &str, verbosity: i64, dir: Option<&Path>) -> std::io::Result<()> {
    let level = match verbosity {
        i64::MIN..=1 => "info",
        2..=4 => "info",
        5..=7 => "debug",
        _ => "trace",
    };
    let filter = std::env::var("PILOTHOUSE_LOG").unwrap_or_else(|_| {
        format!(
            "warn,kube_client=off,kube_runtime=off,{}",
            OUR_CRATES.map(|c| format!("pilothouse_{c}={level}")).join(",")
        )
    });
    let writer = match dir {
        None => BoxMakeWriter::new(std::io::stderr),
        Some(dir) => {
            std::fs::create_dir_all(dir)?;
            let file =
                OpenOptions::new().create(true).append(true).open(dir.join(format!("{component}.INFO")))?;
            BoxMakeWriter::new(Mutex::new(file))
        }
    };
    let _ = tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new(filter))
        .with_writer(writer)
        .with_ansi(false)
        .try_init();
    Ok(())
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

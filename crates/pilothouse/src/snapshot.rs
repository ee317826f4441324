//! `pilothouse snapshot`: what the embedded store holds, in one file, and back (see [`pilothouse_store::snapshot`]).

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use pilothouse_store::snapshot;

use crate::components;

const USAGE: &str = "\
Usage:
  pilothouse snapshot save FILE [--data-dir DIR]      what a store holds, into FILE; it may be in use
  pilothouse snapshot status FILE                     what FILE holds
  pilothouse snapshot restore FILE [--data-dir DIR]   a store out of FILE; there may be none in DIR yet

DIR is that of `pilothouse up` (/var/lib/pilothouse if not given) or of `kube-apiserver --data-dir`.
";

/// Runs the command.
pub fn main(args: &[String]) -> anyhow::Result<()> {
    let (mut rest, mut data_dir) = (Vec::new(), PathBuf::from("/var/lib/pilothouse"));
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        match arg.strip_prefix("--data-dir") {
            Some("") => data_dir = args.next().context("flag needs an argument: --data-dir")?.into(),
            Some(value) if value.starts_with('=') => data_dir = value[1..].into(),
            _ if arg.starts_with('-') && arg != "--help" && arg != "-h" => bail!("unknown flag: {arg}"),
            _ => rest.push(arg.as_str()),
        }
    }
    match rest[..] {
        ["save", file] => {
            components::runtime()?.block_on(snapshot::save(Path::new(file), &data_dir))?;
            println!("Snapshot saved at {file}");
        }
        ["status", file] => {
            let snapshot::Status { heading, hash, size } = snapshot::status(Path::new(file))?;
            println!(
                "HASH {hash}\nREVISION {}\nTOTAL KEYS {}\nTOTAL SIZE {size}",
                heading.revision, heading.keys
            );
        }
        ["restore", file] => {
            let (heading, dir) = snapshot::restore(Path::new(file), &data_dir)?;
            let (revision, keys) = (heading.revision, heading.keys);
            println!("Restored revision {revision} with {keys} keys to {}", dir.display());
        }
        [] | ["--help" | "-h" | "help", ..] => print!("{USAGE}"),
        _ => bail!("what is meant by {:?}? See `pilothouse snapshot help`", rest.join(" ")),
    }
    Ok(())
}

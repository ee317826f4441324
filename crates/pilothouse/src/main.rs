//! Pilothouse: Kubernetes in one binary.
//!
//! The first argument names what to run; called by a component's name (a link named `kube-apiserver`, say) it is that
//! component. `up` runs a whole one-machine cluster.

mod components;
#[cfg(test)]
mod flag_lists;
mod memory;
mod pod_network;
mod snapshot;
mod up;

use std::path::Path;
use std::process::ExitCode;

use components::COMPONENTS;
use pilothouse_pki::cfssl;

/// Objects are trees of many small pieces: under load, half of the API server's time went into glibc's allocator. Huge
/// pages, which it takes by default, make an idle server twice as large and a busy one no faster.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const USAGE: &str = "\
Pilothouse: Kubernetes in one binary.

Usage:
  pilothouse up [flags]        run a whole cluster on this machine
  pilothouse reset [flags]     remove all that `up` left on this machine
  pilothouse snapshot ...      save and restore what the embedded store holds
  pilothouse COMPONENT [flags] run one component alone
  pilothouse pki COMMAND ...   make and show certificates, as cfssl does (`pki json`: as cfssljson)
  pilothouse version

Components (a link to this program by one of these names is that component):
";

fn main() -> ExitCode {
    let mut args = std::env::args();
    let own = args.next().unwrap_or_default();
    let own = Path::new(&own).file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let mut args: Vec<String> = args.collect();
    if let Some((_, tool)) = cfssl::NAMES.iter().find(|(name, _)| *name == own) {
        return cfssl::main(*tool, &args);
    }
    let name = if COMPONENTS.iter().any(|c| c.name == own) {
        own
    } else if args.is_empty() {
        print_usage();
        return ExitCode::from(1);
    } else {
        args.remove(0)
    };
    if name == "up" || COMPONENTS.iter().any(|c| c.name == name) {
        memory::give_back_code_later();
    }
    let result = match name.as_str() {
        "up" => up::main(&args),
        "reset" => up::reset::main(&args),
        "snapshot" => snapshot::main(&args),
        "version" | "--version" => {
            println!(
                "Pilothouse {} (Kubernetes {})",
                env!("CARGO_PKG_VERSION"),
                components::newest_version()
            );
            return ExitCode::SUCCESS;
        }
        "pki" => {
            let json = args.first().is_some_and(|a| a == "json");
            return match json {
                true => cfssl::main(cfssl::Tool::Json, &args[1..]),
                false => cfssl::main(cfssl::Tool::Cfssl, &args),
            };
        }
        "help" | "--help" | "-h" => {
            print_usage();
            return ExitCode::SUCCESS;
        }
        _ => match COMPONENTS.iter().find(|c| c.name == name) {
            Some(c) => components::main(c, &args),
            None => Err(anyhow::anyhow!("unknown command {name:?}; see `pilothouse help`")),
        },
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("Error: {e:#}");
            ExitCode::from(1)
        }
    }
}

fn print_usage() {
    print!("{USAGE}");
    for c in COMPONENTS {
        println!("  {}", c.name);
    }
}

//! The components, each a flag table and a function; and running one of them as a process of its own.

use std::future::Future;
use std::pin::Pin;

use pilothouse_component_base::flags::{self, Flags};
use pilothouse_component_base::signals::Stop;
use pilothouse_component_base::{logs, notify};

use crate::pod_network;

type Running = Pin<Box<dyn Future<Output = anyhow::Result<()>> + Send>>;

/// One component of Kubernetes.
#[derive(Clone, Copy)]
pub struct Component {
    /// Kubernetes' name for it.
    pub name: &'static str,
    /// Its flag table.
    pub flags: &'static str,
    run: fn(Flags, Stop) -> Running,
    /// Reads its flags and does no more.
    #[cfg(test)]
    pub configured: fn(&Flags) -> Result<(), String>,
}

macro_rules! component {
    ($name:literal, $krate:ident) => {
        Component {
            name: $name,
            flags: $krate::FLAGS,
            run: |flags, stop| {
                Box::pin(async move {
                    let config = $krate::Config::from_flags(&flags).map_err(anyhow::Error::msg)?;
                    flags.warn_ineffective();
                    $krate::run(config, stop).await
                })
            },
            #[cfg(test)]
            configured: |flags| $krate::Config::from_flags(flags).map(drop).map_err(|e| e.to_string()),
        }
    };
}

/// All of them.
pub const COMPONENTS: &[Component] = &[
    component!("kube-apiserver", pilothouse_apiserver),
    component!("kube-controller-manager", pilothouse_controller_manager),
    component!("kube-scheduler", pilothouse_scheduler),
    component!("kube-proxy", pilothouse_proxy),
    component!("cluster-dns", pilothouse_dns),
    component!("kubelet", pilothouse_kubelet),
    component!("pod-network", pod_network),
];

impl Component {
    /// The component of that name.
    pub fn named(name: &str) -> Option<&'static Component> {
        COMPONENTS.iter().find(|c| c.name == name)
    }

    /// Parses `args` and runs until `stop` or an error.
    pub async fn run(&self, args: &[String], stop: Stop) -> anyhow::Result<()> {
        let flags = Flags::parse(&flags::table(self.flags), args.iter().cloned())?;
        (self.run)(flags, stop).await
    }
}

/// What `--version` shows where nothing is emulated.
pub fn newest_version() -> String {
    pilothouse_apimachinery::version::NEWEST.git_version()
}

/// Runs one component as this process.
pub fn main(component: &'static Component, args: &[String]) -> anyhow::Result<()> {
    let table = flags::table(component.flags);
    let flags = Flags::parse(&table, args.iter().cloned())?;
    if flags.bool("help") {
        print!("{}", Flags::help(component.name, &table));
        return Ok(());
    }
    if flags.bool("version") {
        println!("Kubernetes {}", newest_version());
        return Ok(());
    }
    let to_files = logs::init(component.name, &flags)?;
    for warning in flags.deprecation_warnings() {
        eprintln!("{warning}");
    }
    notify::serve_as(component.name);
    let ended = runtime()?.block_on(async {
        let stop = Stop::on_signals()?;
        let told = stop.clone();
        tokio::spawn(async move {
            told.wait().await;
            notify::stopping(component.name);
        });
        (component.run)(flags, stop).await
    });
    if let (Err(e), true) = (&ended, to_files) {
        tracing::error!("{e:#}");
    }
    ended
}

/// The runtime that every process of ours runs on. Also chooses the TLS library's cryptography, once.
pub fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    tokio::runtime::Builder::new_multi_thread().enable_all().build()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The options that the install's scripts write are flags of the component.
    #[test]
    fn the_scripts_options_are_known() {
        let scripts = [
            ("kube-apiserver", include_str!("../../../scripts/apiserver.sh")),
            ("kube-controller-manager", include_str!("../../../scripts/controller-manager.sh")),
            ("kube-scheduler", include_str!("../../../scripts/scheduler.sh")),
            ("kubelet", include_str!("../../../scripts/kubelet.sh")),
            ("kube-proxy", include_str!("../../../scripts/proxy.sh")),
            ("pod-network", include_str!("../../../scripts/network.sh")),
            ("cluster-dns", include_str!("../../../scripts/dns.sh")),
        ];
        for (name, script) in scripts {
            let component = Component::named(name).unwrap();
            let begin = script.find("_OPTS=\"").unwrap();
            let options = script[begin..].lines().map_while(|l| {
                let option = l.rsplit_once("--").filter(|(_, o)| o.contains('='))?.1;
                let option = option.trim_end_matches(['\\', ' ', '"']);
                Some(format!("--{}", option.replace("$api_port", "6443")))
            });
            let options: Vec<String> = options.collect();
            assert!(options.len() > 3, "{name}: {options:?}");
            Flags::parse(&flags::table(component.flags), options).unwrap();
        }
    }
}

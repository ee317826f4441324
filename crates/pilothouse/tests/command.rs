//! The command line of the binary itself.

use std::os::unix::process::CommandExt;
use std::process::{Command, Output};

fn pilothouse(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_pilothouse")).args(args).output().expect("the program starts")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn help_names_every_component() {
    let output = pilothouse(&["help"]);
    assert!(output.status.success());
    let help = text(&output.stdout);
    for name in [
        "up",
        "reset",
        "kube-apiserver",
        "kube-controller-manager",
        "kube-scheduler",
        "kubelet",
        "kube-proxy",
    ] {
        assert!(help.contains(name), "{name} is not in:\n{help}");
    }
}

#[test]
fn a_link_by_a_components_name_is_that_component() {
    for name in ["kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy"] {
        let output = Command::new(env!("CARGO_BIN_EXE_pilothouse"))
            .arg0(format!("/usr/bin/{name}"))
            .arg("--version")
            .output();
        let output = output.unwrap();
        assert!(output.status.success(), "{name}: {}", text(&output.stderr));
        assert!(text(&output.stdout).starts_with("Kubernetes v1."), "{name}: {}", text(&output.stdout));
        assert!(pilothouse(&[name, "--help"]).status.success(), "{name}");
    }
}

#[test]
fn unknown_flags_and_commands_are_errors() {
    for args in [&["kube-apiserver", "--no-such-flag"][..], &["up", "--no-such-flag"], &["no-such-command"]] {
        let output = pilothouse(args);
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        assert!(text(&output.stderr).contains("no-such-"), "{args:?}: {}", text(&output.stderr));
    }
}

#[test]
fn reset_of_what_is_not_there_does_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let missing = format!("--data-dir={}", dir.path().join("missing").display());
    assert!(pilothouse(&["reset", &missing]).status.success());
}

#[test]
fn reset_refuses_a_folder_that_is_not_ours() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("letters"), "dear").unwrap();
    let output = pilothouse(&["reset", &format!("--data-dir={}", dir.path().display())]);
    assert!(!output.status.success());
    assert!(dir.path().join("letters").exists());
}

#[test]
fn it_is_cfssl_by_that_name() {
    let by_name = |name: &str, args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pilothouse"));
        command.arg0(name).args(args).stdin(std::process::Stdio::null()).output().unwrap()
    };
    let version = by_name("/usr/local/bin/cfssl", &["version"]);
    assert!(text(&version.stdout).starts_with("Version: "), "{version:?}");
    assert_eq!(version.stdout, pilothouse(&["pki", "version"]).stdout);
    let empty = by_name("cfssljson", &["-bare", "x"]);
    assert!(!empty.status.success() && text(&empty.stderr).contains("there is no input"), "{empty:?}");
    assert_eq!(by_name("cfssl", &["gencert", "-nope"]).status.code(), Some(2));
}

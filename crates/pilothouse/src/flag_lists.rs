//! The flags that Kubernetes v1.20 publishes, as data, against the components' own tables.

use std::collections::{BTreeMap, BTreeSet};

use pilothouse_component_base::flags::{self, FlagError, Flags};
use pilothouse_component_base::logs;

use crate::components::{COMPONENTS, Component};

/// Component, name, type and default of the reference's pages
/// (<https://v1-20.docs.kubernetes.io/docs/reference/command-line-tools-reference/>), and `deprecated`.
const PUBLISHED: &str = include_str!("flag_lists/published-1.20.tsv");
/// Component, reason, and the names of flags that are taken and change nothing for that reason.
const WITHOUT_EFFECT: &str = include_str!("flag_lists/without-effect.tsv");

fn rows(text: &'static str) -> impl Iterator<Item = Vec<&'static str>> {
    let lines = text.lines().filter(|l| !l.is_empty() && !l.starts_with('#'));
    lines.map(|l| l.split('\t').map(str::trim).collect())
}

fn names() -> BTreeSet<&'static str> {
    rows(PUBLISHED).map(|row| row[0]).collect()
}

fn table(component: &str) -> Vec<flags::FlagSpec> {
    flags::table(Component::named(component).unwrap().flags)
}

/// A value of the type that a user might give.
fn example(kind: &str, default: &str) -> String {
    match kind {
        _ if !default.is_empty() => default,
        "bool" | "version[=true]" => "true",
        "int" | "int32" | "uint" | "Level" | "float" | "float32" => "1",
        "duration" => "1m30s",
        "mapStringBool" => "A=true",
        "mapStringString" => "a=b",
        "ip" => "10.0.0.1",
        "ipport" => "10.0.0.1:80",
        "cidrs" => "10.0.0.0/8",
        _ => "x",
    }
    .to_string()
}

#[test]
fn what_is_published_is_known() {
    assert_eq!(names().len(), 5);
    for row in rows(PUBLISHED) {
        let (component, name, kind, default) = (row[0], row[1], row[2], row.get(3).copied().unwrap_or(""));
        let deprecated = row.get(4) == Some(&"deprecated");
        let table = table(component);
        let own = table.iter().find(|s| s.name == name);
        let own = own.unwrap_or_else(|| panic!("{component}: no --{name}"));
        // `none` is what these policies are where nothing is said; no verbosity is the lowest.
        if !matches!(name, "cpu-manager-policy" | "topology-manager-policy" | "v") {
            assert_eq!(own.default, default, "{component}: default of --{name}");
        }
        assert_eq!(own.deprecated, deprecated, "{component}: --{name}");

        let value = example(kind, default);
        for args in [
            vec![format!("--{name}={value}")],
            vec![format!("--{}={value}", name.replace('-', "_"))],
            if own.kind == "bool" { vec![format!("--{name}")] } else { vec![format!("--{name}"), value] },
        ] {
            let flags = Flags::parse(&table, args.clone());
            let flags = flags.unwrap_or_else(|e| panic!("{component} {args:?}: {e}"));
            assert!(flags.given(name), "{component} {args:?}");
            let warnings = flags.deprecation_warnings();
            let wanted = format!("Flag --{name} has been deprecated");
            assert_eq!(warnings.iter().any(|w| w.starts_with(&wanted)), deprecated, "{component} {args:?}");
        }
        let misspelt = format!("--{name}s-not");
        let refused = Flags::parse(&table, [format!("{misspelt}=x")]).unwrap_err();
        assert_eq!(refused, FlagError::Unknown(misspelt[2..].to_string()), "{component}");
    }
}

#[test]
fn bad_values_are_refused() {
    let bad = |kind: &str| match kind {
        "bool" | "int" | "float" | "duration" | "mapStringBool" => Some("nonsense"),
        _ => None,
    };
    let mut tried = 0;
    for component in COMPONENTS {
        let table = flags::table(component.flags);
        for spec in &table {
            let Some(value) = bad(spec.kind) else { continue };
            let refused = Flags::parse(&table, [format!("--{}={value}", spec.name)]).unwrap_err();
            let text = refused.to_string();
            let wanted = format!("invalid argument {value:?} for \"--{}\" flag: ", spec.name);
            assert!(text.starts_with(&wanted), "{}: {text}", component.name);
            tried += 1;
        }
    }
    assert!(tried > 200, "{tried}");
}

/// What has no effect says so when it is used, and stands in the list with the reason.
#[test]
fn the_others_have_an_effect() {
    let mut wanted: BTreeMap<&str, BTreeSet<&str>> =
        names().into_iter().map(|n| (n, BTreeSet::new())).collect();
    for row in rows(WITHOUT_EFFECT) {
        assert!(!row[1].is_empty(), "a reason: {row:?}");
        let components: Vec<&str> = if row[0] == "*" { names().into_iter().collect() } else { vec![row[0]] };
        for component in components {
            wanted.get_mut(component).unwrap().extend(row[2].split(' '));
        }
    }
    let mut problems = Vec::new();
    let dir = tempfile::tempdir().unwrap();
    let kubeconfig = dir.path().join("kubeconfig");
    std::fs::write(&kubeconfig, "").unwrap();
    for (name, wanted) in wanted {
        let component = Component::named(name).unwrap();
        let table = flags::table(component.flags);
        let nothing = |spec: &flags::FlagSpec| match spec.kind {
            _ if !spec.default.is_empty() => spec.default,
            "bool" => "false",
            "int" | "float" => "0",
            "duration" => "0s",
            _ => "",
        };
        let mut args: Vec<String> = table
            .iter()
            .filter(|s| !matches!(s.name, "kubeconfig" | "etcd-servers"))
            .map(|s| format!("--{}={}", s.name, nothing(s)))
            .collect();
        // What others depend on is there.
        args.extend(match name {
            "kube-apiserver" => vec![
                "--etcd-servers=http://127.0.0.1:2379".to_string(),
                "--oidc-issuer-url=https://127.0.0.1".into(),
                "--oidc-client-id=x".into(),
                "--requestheader-client-ca-file=x".into(),
            ],
            _ => vec![format!("--kubeconfig={}", kubeconfig.display())],
        });
        let flags = Flags::parse(&table, args).unwrap_or_else(|e| panic!("{name}: {e}"));
        for of_every_program in ["help", "version"] {
            flags.bool(of_every_program);
        }
        logs::init(name, &flags).unwrap();
        (component.configured)(&flags).unwrap_or_else(|e| panic!("{name}: {e}"));
        let ineffective: BTreeSet<&str> = flags.ineffective().into_iter().collect();
        let mut differs = |what: &str, names: Vec<&str>| {
            if !names.is_empty() {
                problems.push(format!("{name}: {what}: {}", names.join(" ")));
            }
        };
        differs("no effect, and not in the list", ineffective.difference(&wanted).copied().collect());
        differs("in the list, but read", wanted.difference(&ineffective).copied().collect());
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

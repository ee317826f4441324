//! Bad input: kubectl shows what Kubernetes says, and nothing else is disturbed.

use pilothouse_tests::kubectl::{Session, Version};

crate::with_each_kubectl!(files_that_make_no_sense, objects_that_are_too_large, pods_that_cannot_start);

const POD: &str = "apiVersion: v1\nkind: Pod\nmetadata:\n  name: NAME\nspec:\n  containers:\n  - name: c\n    image: IMAGE\n";

fn pod(name: &str, image: &str, more: &str) -> String {
    format!("{}{more}", POD.replace("NAME", name).replace("IMAGE", image))
}

fn files_that_make_no_sense(s: &Session) {
    s.file("malformed.yaml", "apiVersion: v1\nkind: Pod\n  metadata: [\n");
    let said = s.fails("kubectl apply -f malformed.yaml");
    assert!(
        said.contains("error parsing malformed.yaml") || said.contains("error converting YAML to JSON"),
        "{said}"
    );

    s.file("unknown.yaml", &pod("unknown", "busybox", "  foo: bar\n"));
    let said = s.fails("kubectl apply -f unknown.yaml");
    match s.version {
        Version::V1_20 => assert!(
            said.contains("ValidationError(Pod.spec): unknown field \"foo\" in io.k8s.api.core.v1.PodSpec"),
            "{said}"
        ),
        Version::Current => {
            assert!(said.contains("strict decoding error: unknown field \"spec.foo\""), "{said}")
        }
    }
    // Without validation the field is dropped.
    assert!(s.run("kubectl apply --validate=false -f unknown.yaml").contains("pod/unknown created"));
    s.run("kubectl delete --wait=false -f unknown.yaml");

    s.file("type.yaml", "apiVersion: apps/v1\nkind: Deployment\nmetadata:\n  name: d\nspec:\n  replicas: many\n  selector:\n    \
                         matchLabels:\n      a: b\n  template:\n    metadata:\n      labels:\n        a: b\n    spec:\n      \
                         containers:\n      - name: c\n        image: busybox\n");
    let said = s.fails("kubectl apply -f type.yaml");
    match s.version {
        Version::V1_20 => assert!(
            said.contains("ValidationError(Deployment.spec.replicas): invalid type for")
                && said.contains("got \"string\""),
            "{said}"
        ),
        Version::Current => assert!(
            said.contains("cannot unmarshal string into Go struct field") && said.contains("replicas"),
            "{said}"
        ),
    }

    s.file("kind.yaml", "apiVersion: v1\nkind: Pot\nmetadata:\n  name: a\n");
    let said = s.fails("kubectl apply -f kind.yaml");
    assert!(said.contains("no matches for kind \"Pot\" in version \"v1\""), "{said}");

    s.file("empty.yaml", "");
    let said = s.fails("kubectl apply -f empty.yaml");
    assert!(said.contains("no objects passed to apply"), "{said}");

    s.file(
        "containers.yaml",
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: none\nspec:\n  containers: []\n",
    );
    let said = s.fails("kubectl apply -f containers.yaml");
    assert!(said.contains("The Pod \"none\" is invalid: spec.containers: Required value"), "{said}");
}

fn objects_that_are_too_large(s: &Session) {
    let name = "n".repeat(254);
    s.file("name.yaml", &pod(&name, "busybox", ""));
    let said = s.fails("kubectl apply -f name.yaml");
    assert!(
        said.contains("metadata.name: Invalid value") && said.contains("must be no more than 253 characters"),
        "{said}"
    );

    s.run("{ printf 'apiVersion: v1\\nkind: ConfigMap\\nmetadata:\\n  name: big\\ndata:\\n  k: '; head -c 2000000 /dev/zero | tr '\\0' x; echo; } > big.yaml");
    let said = s.fails("kubectl apply -f big.yaml");
    // With what was last applied beside it, it is too large for any request.
    assert!(said.contains("Request entity too large: limit is 3145728"), "{said}");
    s.run("head -c 600000 big.yaml > middle.yaml");
    let said = s.fails("kubectl apply -f middle.yaml");
    assert!(said.contains("metadata.annotations: Too long: ") && said.contains("262144"), "{said}");
    let said = s.fails("kubectl create -f big.yaml");
    assert!(said.contains("Too long: ") && said.contains("1048576"), "{said}");
    assert_eq!(s.run("kubectl get configmap big --ignore-not-found"), "");
}

fn pods_that_cannot_start(s: &Session) {
    let waiting = |name: &str, reasons: &[&str]| {
        s.eventually(&format!("{name} waits for {reasons:?}"), 120, || {
            let reason = s.field(&format!("pod/{name}"), "/status/containerStatuses/0/state/waiting/reason");
            if reasons.iter().any(|r| reason == *r) { Ok(()) } else { Err(reason.to_string()) }
        });
    };
    s.file(
        "healthy.yaml",
        &pod("healthy", "busybox", "    command: [sleep, \"3600\"]\n    imagePullPolicy: IfNotPresent\n"),
    );
    s.file("missing.yaml", &pod("missing", "nowhere/none:1", ""));
    s.file(
        "command.yaml",
        &pod("command", "busybox", "    imagePullPolicy: IfNotPresent\n    command: [/no/such/program]\n"),
    );
    s.file("name.yaml", &pod("name", "gcr.io/<project>/job-wq-1", ""));
    s.file(
        "config.yaml",
        &pod(
            "config",
            "busybox",
            "    imagePullPolicy: IfNotPresent\n    envFrom:\n    - configMapRef:\n        name: none\n",
        ),
    );
    s.file(
        "ends.yaml",
        &pod("ends", "busybox", "    imagePullPolicy: IfNotPresent\n    command: [sh, -c, exit 5]\n"),
    );
    s.run("for f in healthy missing command name config ends; do kubectl apply -f $f.yaml; done");
    waiting("missing", &["ErrImagePull"]);
    waiting("missing", &["ImagePullBackOff"]);
    let described = s.run("kubectl describe pod missing");
    for part in [
        "Pulling image \"nowhere/none:1\"",
        "Failed to pull image \"nowhere/none:1\"",
        "Error: ErrImagePull",
        "Back-off pulling image \"nowhere/none:1\"",
    ] {
        assert!(described.contains(part), "{part} is not in\n{described}");
    }
    waiting("name", &["InvalidImageName"]);
    waiting("config", &["CreateContainerConfigError"]);
    assert!(s.run("kubectl describe pod config").contains("configmap \"none\" not found"));
    waiting("command", &["RunContainerError", "CrashLoopBackOff"]);
    let last = s.eventually("how the program was not found", 60, || {
        let status = s.field("pod/command", "/status/containerStatuses/0");
        let state = status.pointer("/lastState/terminated").or(status.pointer("/state/terminated")).cloned();
        state.ok_or(status.to_string())
    });
    assert_eq!(last["exitCode"], 128, "{last}");
    assert!(last["message"].as_str().is_some_and(|m| m.contains("no such file or directory")), "{last}");
    waiting("ends", &["CrashLoopBackOff"]);
    assert_eq!(s.field("pod/ends", "/status/containerStatuses/0/lastState/terminated/exitCode"), 5);
    assert!(s.run("kubectl describe pod ends").contains("Back-off restarting failed container"));
    // The others are not the healthy one's business.
    assert_eq!(s.field("pod/healthy", "/status/phase"), "Running");
    assert_eq!(s.field("pod/healthy", "/status/containerStatuses/0/restartCount"), 0);
}

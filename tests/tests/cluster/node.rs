//! What the node does for users: streams, logs, copies, environment, probes, hooks.

use pilothouse_tests::kubectl::Session;

crate::with_each_kubectl!(streams, logs, copies, ports_are_forwarded);
crate::with_one_kubectl!(
    environment_and_volumes,
    probes_and_hooks,
    init_containers_come_first,
    security_contexts
);

fn busybox(s: &Session, name: &str, command: &str) {
    s.run(&format!("kubectl run {name} --image=busybox --image-pull-policy=IfNotPresent --restart=Never --command -- sh -c '{command}'"));
    s.expect(&format!("pod/{name}"), "/status/phase", "Running", 90);
}

fn streams(s: &Session) {
    busybox(s, "box", "while read line; do echo got $line; done; sleep 3600");
    assert_eq!(s.run("echo in | kubectl exec -i box -- sh -c 'cat; echo err >&2' 2>err"), "in\n");
    assert!(s.read("err").contains("err"));
    let said = s.fails("kubectl exec box -- sh -c 'exit 7'");
    assert!(said.contains("exit code 7"), "{said}");
    assert_eq!(s.output("kubectl exec box -- sh -c 'exit 7'").status.code(), Some(7));
    let said = s.fails("kubectl exec box -- /no/such/program");
    assert!(said.contains("no such file or directory"), "{said}");
    let said = s.fails("kubectl exec nowhere -- true");
    assert!(said.contains("pods \"nowhere\" not found"), "{said}");
    let shown = s.terminal("kubectl exec -it box -- sh", "tty\nstty size\nexit 3\n");
    assert!(shown.contains("/dev/pts/0"), "{shown}");
    // Much of it, to the last byte.
    assert_eq!(s.run("kubectl exec box -- head -c 5000000 /dev/zero | wc -c").trim(), "5000000");
    assert_eq!(s.run("head -c 3000000 /dev/zero | kubectl exec -i box -- wc -c").trim(), "3000000");

    // It says nothing before somebody is there to hear it.
    let said = s.run("echo hello | kubectl run once --image=busybox --image-pull-policy=IfNotPresent --restart=Never --rm -i --quiet -- sh -c 'read word; echo $word from the pod'");
    assert!(said.contains("hello from the pod"), "{said}");
    s.gone("pod/once", 30);

    s.run("kubectl run typed --image=busybox --image-pull-policy=IfNotPresent --restart=Never --stdin --attach=false --command -- sh -c 'while read line; do echo got $line; done'");
    s.expect("pod/typed", "/status/phase", "Running", 60);
    s.run("echo words | timeout 5 kubectl attach -i typed || true");
    s.eventually("the attached input arrived", 20, || {
        let logs = s.run("kubectl logs typed");
        if logs.contains("got words") { Ok(()) } else { Err(logs) }
    });
}

fn logs(s: &Session) {
    busybox(s, "talks", "for i in 1 2 3 4 5; do echo line $i; done; sleep 2; echo late; sleep 3600");
    assert_eq!(
        s.run("kubectl logs talks --tail=2 --since=1h | head -n 1").split_whitespace().next(),
        Some("line")
    );
    let followed = s.run("timeout 10 kubectl logs -f talks || true");
    assert_eq!(followed, "line 1\nline 2\nline 3\nline 4\nline 5\nlate\n");
    assert_eq!(s.run("kubectl logs talks --tail=1"), "late\n");
    assert_eq!(s.run("kubectl logs talks --limit-bytes=6"), "line 1");
    let stamped = s.run("kubectl logs talks --timestamps --tail=1");
    assert!(stamped.ends_with("Z late\n") && stamped.starts_with("20"), "{stamped}");
    let said = s.fails("kubectl logs talks -c other");
    assert!(said.contains("container other is not valid for pod talks"), "{said}");
    let said = s.fails("kubectl logs talks --previous");
    assert!(said.contains("previous terminated container \"talks\" in pod \"talks\" not found"), "{said}");
    s.run("kubectl run dies --image=busybox --image-pull-policy=IfNotPresent --command -- sh -c 'echo life; sleep 1; exit 1'");
    s.eventually("its former life's log", 60, || {
        s.try_run("kubectl logs dies --previous").and_then(|l| if l == "life\n" { Ok(()) } else { Err(l) })
    });
}

fn copies(s: &Session) {
    busybox(s, "box", "sleep 3600");
    s.run(
        "mkdir -p there/deep && head -c 2000000 /dev/urandom > there/deep/bytes && echo words > there/words",
    );
    s.run("kubectl cp there box:/tmp/there");
    assert_eq!(s.run("kubectl exec box -- cat /tmp/there/words"), "words\n");
    s.run("kubectl cp box:/tmp/there back");
    s.run("cmp there/deep/bytes back/deep/bytes && cmp there/words back/words");
}

fn ports_are_forwarded(s: &Session) {
    s.run("kubectl run web --image=nginx --image-pull-policy=IfNotPresent --port=80");
    s.expect("pod/web", "/status/phase", "Running", 90);
    let port = match s.version {
        pilothouse_tests::kubectl::Version::V1_20 => 18080,
        pilothouse_tests::kubectl::Version::Current => 18081,
    };
    let _forward = s.background(&format!("kubectl port-forward web {port}:80"), "forward");
    let page = s.eventually("the page", 30, || s.try_run(&format!("curl -sS http://127.0.0.1:{port}/")));
    assert!(page.contains("Welcome to nginx!"), "{page}");
    assert!(s.read("forward").contains(&format!("Forwarding from 127.0.0.1:{port} -> 80")));
    // Several connections at a time, and one after another.
    let codes = s.run(&format!(
        "for i in 1 2 3 4 5 6; do curl -s -o /dev/null -w '%{{http_code}} ' http://127.0.0.1:{port}/ & done; wait"
    ));
    assert_eq!(codes, "200 200 200 200 200 200 ");
}

fn environment_and_volumes(s: &Session) {
    s.run("kubectl create configmap settings --from-literal=colour=blue && kubectl create secret generic keys --from-literal=key=hidden");
    s.file(
        "pod.yaml",
        r#"
apiVersion: v1
kind: Pod
metadata:
  name: all
  labels: {app: all}
  annotations: {note: hello}
spec:
  restartPolicy: Never
  volumes:
  - {name: empty, emptyDir: {}}
  - {name: memory, emptyDir: {medium: Memory}}
  - {name: settings, configMap: {name: settings}}
  - {name: keys, secret: {secretName: keys, defaultMode: 0400}}
  - {name: info, downwardAPI: {items: [{path: labels, fieldRef: {fieldPath: metadata.labels}}]}}
  - {name: host, hostPath: {path: /var/lib/test-host-path, type: DirectoryOrCreate}}
  - name: together
    projected:
      sources:
      - configMap: {name: settings, items: [{key: colour, path: paint/colour}]}
      - secret: {name: keys}
      - serviceAccountToken: {path: token, expirationSeconds: 600}
  containers:
  - name: c
    image: busybox
    imagePullPolicy: IfNotPresent
    command: [sleep, "3600"]
    resources: {limits: {memory: 64Mi, cpu: 250m}, requests: {cpu: 100m}}
    env:
    - {name: NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
    - {name: ADDRESS, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
    - {name: NODE, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}
    - {name: MEMORY, valueFrom: {resourceFieldRef: {resource: limits.memory}}}
    - {name: COLOUR, valueFrom: {configMapKeyRef: {name: settings, key: colour}}}
    - {name: KEY, valueFrom: {secretKeyRef: {name: keys, key: key}}}
    - {name: BOTH, value: "$(NAME)-$(COLOUR)-$(NONE)"}
    volumeMounts:
    - {name: empty, mountPath: /empty}
    - {name: memory, mountPath: /memory}
    - {name: settings, mountPath: /settings}
    - {name: keys, mountPath: /keys}
    - {name: info, mountPath: /info}
    - {name: host, mountPath: /host}
    - {name: together, mountPath: /together}
    - {name: empty, mountPath: /part, subPath: part}
"#,
    );
    s.run("kubectl apply -f pod.yaml");
    s.expect("pod/all", "/status/phase", "Running", 90);
    let sh = |command: &str| s.run(&format!("kubectl exec all -- sh -c '{command}'"));
    let pod = s.get("pod/all");
    let address = pod["status"]["podIP"].as_str().unwrap_or_default().to_string();
    let node = pod["spec"]["nodeName"].as_str().unwrap_or_default().to_string();
    assert_eq!(
        sh("echo $NAME $ADDRESS $NODE $MEMORY $COLOUR $KEY $BOTH"),
        format!("all {address} {node} 67108864 blue hidden all-blue-$(NONE)\n")
    );
    assert!(sh("env").contains("KUBERNETES_SERVICE_HOST=10.0.0.1\n"));
    assert_eq!(sh("cat /settings/colour /together/paint/colour /together/key"), "bluebluehidden");
    assert!(sh("ls -lL /keys/key").starts_with("-r--------"));
    assert_eq!(sh("cat /info/labels"), "app=\"all\"");
    assert_eq!(sh("cat /together/token | tr -cd . | wc -c").trim(), "2");
    assert_eq!(sh("cat /var/run/secrets/kubernetes.io/serviceaccount/namespace"), s.namespace);
    sh("echo a > /empty/a; echo b > /part/b; echo c > /host/c; mount | grep -q \"/memory type tmpfs\"");
    assert_eq!(sh("cat /empty/part/b"), "b\n");
    assert_eq!(s.cluster.sh("cat /var/lib/test-host-path/c"), "c\n");
    // A changed ConfigMap arrives in the file.
    s.run("kubectl patch configmap settings -p '{\"data\":{\"colour\":\"green\"}}'");
    s.eventually("the changed file", 120, || {
        let now = sh("cat /settings/colour");
        if now == "green" { Ok(()) } else { Err(now) }
    });
    let limits = s.cluster.sh(&format!(
        "cat $(find /sys/fs/cgroup -path '*pod{}/*' \\( -name memory.limit_in_bytes -o -name memory.max \\))",
        pod["metadata"]["uid"].as_str().unwrap_or_default()
    ));
    assert!(limits.lines().any(|l| l == "67108864"), "{limits}");
}

fn probes_and_hooks(s: &Session) {
    s.file(
        "pod.yaml",
        r#"
apiVersion: v1
kind: Pod
metadata:
  name: probed
spec:
  terminationGracePeriodSeconds: 10
  containers:
  - name: ready
    image: busybox
    imagePullPolicy: IfNotPresent
    command: [sleep, "3600"]
    readinessProbe: {exec: {command: [cat, /tmp/ready]}, periodSeconds: 1}
    lifecycle:
      postStart: {exec: {command: [touch, /tmp/started]}}
      preStop: {exec: {command: [sh, -c, "echo stopped > /host/stopped"]}}
    volumeMounts: [{name: host, mountPath: /host}]
  - name: dies
    image: busybox
    imagePullPolicy: IfNotPresent
    command: [sleep, "3600"]
    livenessProbe: {exec: {command: ["false"]}, periodSeconds: 1, failureThreshold: 2}
  volumes:
  - {name: host, hostPath: {path: /var/lib/test-hooks, type: DirectoryOrCreate}}
"#,
    );
    s.run("kubectl apply -f pod.yaml");
    let container = |name: &str| {
        let statuses = s.field("pod/probed", "/status/containerStatuses");
        statuses.as_array().and_then(|l| l.iter().find(|c| c["name"] == name).cloned()).unwrap_or_default()
    };
    s.eventually("a readiness probe failed", 60, || {
        let described = s.try_run("kubectl describe pod probed")?;
        if described.contains("Readiness probe failed") { Ok(()) } else { Err(described) }
    });
    assert_eq!(container("ready")["ready"], false);
    s.run("kubectl exec probed -c ready -- touch /tmp/ready");
    s.eventually("the container is ready", 30, || {
        let ready = container("ready");
        if ready["ready"] == true { Ok(()) } else { Err(ready.to_string()) }
    });
    s.eventually("the live container was killed and started again", 90, || {
        let dies = container("dies");
        if dies["restartCount"].as_i64() >= Some(1) { Ok(()) } else { Err(dies.to_string()) }
    });
    assert_eq!(container("ready")["restartCount"], 0);
    s.run("kubectl exec probed -c ready -- ls /tmp/started");
    let described = s.run("kubectl describe pod probed");
    for part in ["Liveness probe failed", "Container dies failed liveness probe, will be restarted"] {
        assert!(described.contains(part), "{part} is not in\n{described}");
    }
    s.run("kubectl delete pod probed");
    assert_eq!(s.cluster.sh("cat /var/lib/test-hooks/stopped; rm -r /var/lib/test-hooks"), "stopped\n");
}

fn init_containers_come_first(s: &Session) {
    s.file("pod.yaml", r#"
apiVersion: v1
kind: Pod
metadata:
  name: prepared
spec:
  volumes: [{name: v, emptyDir: {}}]
  initContainers:
  - {name: one, image: busybox, imagePullPolicy: IfNotPresent, command: [sh, -c, "echo one >> /v/order; sleep 1"], volumeMounts: [{name: v, mountPath: /v}]}
  - {name: two, image: busybox, imagePullPolicy: IfNotPresent, command: [sh, -c, "echo two >> /v/order"], volumeMounts: [{name: v, mountPath: /v}]}
  containers:
  - {name: main, image: busybox, imagePullPolicy: IfNotPresent, command: [sh, -c, "echo main >> /v/order; sleep 3600"], volumeMounts: [{name: v, mountPath: /v}]}
"#);
    s.run("kubectl apply -f pod.yaml");
    s.expect("pod/prepared", "/status/phase", "Running", 90);
    s.eventually("the order", 20, || {
        let order = s.try_run("kubectl exec prepared -- cat /v/order")?;
        if order == "one\ntwo\nmain\n" { Ok(()) } else { Err(order) }
    });
    s.run("kubectl run stuck --image=busybox --restart=Never --image-pull-policy=IfNotPresent --overrides='{\"spec\":{\"initContainers\":[{\"name\":\"i\",\"image\":\"busybox\",\"imagePullPolicy\":\"IfNotPresent\",\"command\":[\"false\"]}]}}'");
    s.expect("pod/stuck", "/status/phase", "Failed", 60);
    let shown = s.run("kubectl get pod stuck --no-headers");
    assert!(shown.contains("Init:Error"), "{shown}");
}

fn security_contexts(s: &Session) {
    s.file("pod.yaml", r#"
apiVersion: v1
kind: Pod
metadata:
  name: secured
spec:
  securityContext: {runAsUser: 1000, runAsGroup: 2000, fsGroup: 3000}
  volumes: [{name: v, emptyDir: {}}]
  containers:
  - name: c
    image: busybox
    imagePullPolicy: IfNotPresent
    command: [sleep, "3600"]
    securityContext: {readOnlyRootFilesystem: true, capabilities: {drop: [ALL]}, allowPrivilegeEscalation: false}
    volumeMounts: [{name: v, mountPath: /v}]
"#);
    s.run("kubectl apply -f pod.yaml");
    s.expect("pod/secured", "/status/phase", "Running", 90);
    let id = s.run("kubectl exec secured -- id");
    assert!(id.contains("uid=1000") && id.contains("gid=2000") && id.contains("3000"), "{id}");
    assert!(s.fails("kubectl exec secured -- touch /x").contains("Read-only file system"));
    assert_eq!(s.run("kubectl exec secured -- sh -c 'touch /v/x && stat -c %g /v/x'").trim(), "3000");
    assert!(s.run("kubectl exec secured -- grep CapEff /proc/self/status").contains("0000000000000000"));
    s.run("kubectl run rootless --image=busybox --restart=Never --image-pull-policy=IfNotPresent --overrides='{\"spec\":{\"securityContext\":{\"runAsNonRoot\":true}}}'");
    s.expect(
        "pod/rootless",
        "/status/containerStatuses/0/state/waiting/reason",
        "CreateContainerConfigError",
        60,
    );
}

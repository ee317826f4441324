//! Services and DNS, from pods and from the node.

use pilothouse_tests::kubectl::Session;

crate::with_one_kubectl!(a_service_spreads_and_follows_its_pods, names_of_services, deployments_roll);

fn deployment(s: &Session) {
    s.file(
        "web.yaml",
        r#"
apiVersion: apps/v1
kind: Deployment
metadata:
  name: web
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata:
      labels: {app: web}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: web
        image: busybox
        imagePullPolicy: IfNotPresent
        command: [sh, -c, "hostname > /tmp/index.html; exec httpd -f -p 8080 -h /tmp"]
        readinessProbe: {tcpSocket: {port: 8080}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata:
  name: web
spec:
  type: NodePort
  selector: {app: web}
  ports: [{name: http, port: 80, targetPort: 8080}]
"#,
    );
    s.run("kubectl apply -f web.yaml");
    s.run("kubectl rollout status deployment/web --timeout=120s");
}

fn a_service_spreads_and_follows_its_pods(s: &Session) {
    deployment(s);
    let service = s.get("service/web");
    let address = service["spec"]["clusterIP"].as_str().unwrap_or_default().to_string();
    let port = service["spec"]["ports"][0]["nodePort"].to_string();
    let names: Vec<String> = s
        .run("kubectl get pods -l app=web -o name")
        .lines()
        .map(|n| n.trim_start_matches("pod/").to_string())
        .collect();
    s.run("kubectl run client --image=busybox --image-pull-policy=IfNotPresent --restart=Never --command -- sleep 3600");
    s.expect("pod/client", "/status/phase", "Running", 60);
    let node = pilothouse_tests::cluster::ADDRESS;
    let ways = [
        ("a pod, by name", "kubectl exec client -- wget -qO- http://web/".to_string()),
        ("a pod, by address", format!("kubectl exec client -- wget -qO- http://{address}/")),
        ("a pod, by node port", format!("kubectl exec client -- wget -qO- http://{node}:{port}/")),
        ("the node, by address", format!("curl -sS -m 5 http://{address}/")),
        ("the node, by node port", format!("curl -sS -m 5 http://{node}:{port}/")),
    ];
    for (way, command) in &ways {
        let mut seen = std::collections::BTreeSet::new();
        s.eventually(&format!("both pods answer {way}"), 60, || {
            seen.insert(s.try_run(command)?.trim().to_string());
            if seen.len() == 2 { Ok(()) } else { Err(format!("{seen:?}")) }
        });
        assert!(seen.iter().all(|n| names.contains(n)), "{way}: {seen:?} of {names:?}");
    }
    // Without pods a connection is refused at once, and comes back with them.
    s.run("kubectl scale deployment web --replicas=0");
    s.gone("pods -l app=web", 60);
    s.eventually("connections are refused", 30, || {
        let said = s.try_run(&format!("curl -sS -m 3 http://{address}/"));
        match said {
            Err(why) if why.contains("curl: (7)") => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    s.run("kubectl scale deployment web --replicas=1");
    s.eventually("the service answers again", 60, || s.try_run(&format!("curl -sS -m 3 http://{address}/")));
    // A pod reaches itself through its own service.
    let pod = s.run("kubectl get pods -l app=web -o name");
    s.eventually("hairpin", 20, || {
        s.try_run(&format!("kubectl exec {} -- wget -qO- http://web/", pod.trim()))
    });
}

fn names_of_services(s: &Session) {
    deployment(s);
    s.example("statefulset-01-service-nginx.yaml", "svc.yaml");
    s.example("statefulset-02-statefulset-web.yaml", "set.yaml");
    s.run("kubectl apply -f svc.yaml -f set.yaml");
    s.expect("statefulset/web", "/status/readyReplicas", 2, 180);
    s.run("kubectl run client --image=busybox --image-pull-policy=IfNotPresent --restart=Never --command -- sleep 3600");
    s.expect("pod/client", "/status/phase", "Running", 60);
    let ns = &s.namespace;
    let lookup = |query: &str| s.output(&format!("kubectl exec client -- nslookup {query}"));
    let said = |query: &str| String::from_utf8_lossy(&lookup(query).stdout).into_owned();
    let holds = |query: &str, parts: &[&str]| {
        s.eventually(&format!("nslookup {query}"), 30, || {
            let text = said(query);
            if parts.iter().all(|p| text.contains(p)) { Ok(()) } else { Err(text) }
        });
    };
    let text = |v: serde_json::Value| v.as_str().unwrap_or_default().to_string();
    let address = text(s.field("service/web", "/spec/clusterIP"));
    holds(&format!("web.{ns}.svc.cluster.local"), &[&address]);
    holds("kubernetes.default.svc.cluster.local", &["10.0.0.1"]);
    let (zero, one) =
        (text(s.field("pod/web-0", "/status/podIP")), text(s.field("pod/web-1", "/status/podIP")));
    holds(&format!("nginx.{ns}.svc.cluster.local"), &[&zero, &one]);
    holds(&format!("web-1.nginx.{ns}.svc.cluster.local"), &[&one]);
    holds(
        &format!("-type=srv _web._tcp.nginx.{ns}.svc.cluster.local"),
        &[&format!("web-0.nginx.{ns}.svc.cluster.local"), &format!("web-1.nginx.{ns}.svc.cluster.local")],
    );
    holds(&format!("-type=ptr {}", reverse(&zero)), &[&format!("web-0.nginx.{ns}.svc.cluster.local")]);
    holds(&format!("-type=ptr {}", reverse(&address)), &[&format!("web.{ns}.svc.cluster.local")]);
    assert!(said(&format!("nowhere.{ns}.svc.cluster.local")).contains("NXDOMAIN"));
}

fn reverse(address: &str) -> String {
    let parts: Vec<&str> = address.split('.').rev().collect();
    format!("{}.in-addr.arpa", parts.join("."))
}

fn deployments_roll(s: &Session) {
    deployment(s);
    s.run("kubectl set env deployment/web COLOUR=green");
    s.run("kubectl rollout status deployment/web --timeout=120s");
    let sets = s.get("replicasets -l app=web");
    assert_eq!(sets["items"].as_array().map(Vec::len), Some(2));
    let history = s.run("kubectl rollout history deployment/web");
    assert!(
        history.lines().any(|l| l.starts_with('1')) && history.lines().any(|l| l.starts_with('2')),
        "{history}"
    );
    s.run("kubectl rollout undo deployment/web");
    s.run("kubectl rollout status deployment/web --timeout=120s");
    assert_eq!(s.field("deployment/web", "/spec/template/spec/containers/0/env"), serde_json::Value::Null);
    s.run("kubectl delete deployment web");
    s.gone("replicasets,pods -l app=web", 90);
}

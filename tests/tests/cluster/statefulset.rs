//! StatefulSets: names, order, volumes, scaling, updates.

use pilothouse_tests::kubectl::Session;

crate::with_each_kubectl!(topology, storage, elasticsearch);
crate::with_one_kubectl!(scaling_goes_in_order, updates_stop_at_the_partition);

/// Document order: a headless service, two pods one after the other, their names, DNS, and all again after deletion.
fn topology(s: &Session) {
    s.example("statefulset-01-service-nginx.yaml", "svc.yaml");
    s.example("statefulset-02-statefulset-web.yaml", "statefulset.yaml");
    let watch = s.background("kubectl get pods -w -l app=nginx", "watch");

    assert_eq!(s.run("kubectl create -f svc.yaml"), "service/nginx created\n");
    let service = s.run("kubectl get service nginx");
    let fields: Vec<&str> = service.lines().nth(1).unwrap_or_default().split_whitespace().collect();
    assert_eq!(fields[..5], ["nginx", "ClusterIP", "None", "<none>", "80/TCP"], "{service}");
    assert_eq!(s.run("kubectl create -f statefulset.yaml"), "statefulset.apps/web created\n");
    s.expect("statefulset/web", "/status/readyReplicas", 2, 180);
    let set = s.run("kubectl get statefulset web");
    assert!(set.lines().nth(1).is_some_and(|l| l.starts_with("web") && l.contains("2/2")), "{set}");

    s.eventually("the watch shows web-1 running", 20, || {
        running_at(&s.read("watch"), "web-1").ok_or("not yet".into())
    });
    drop(watch);
    let seen = s.read("watch");
    let second = seen.lines().position(|l| l.starts_with("web-1 ")).expect("web-1 in the watch");
    assert!(
        running_at(&seen, "web-0").is_some_and(|first| first < second),
        "web-1 came before web-0 was ready:\n{seen}"
    );

    for pod in ["web-0", "web-1"] {
        assert_eq!(s.run(&format!("kubectl exec {pod} -- sh -c 'hostname'")), format!("{pod}\n"));
    }
    let before = resolve(s);
    assert_eq!(s.run("kubectl delete pod -l app=nginx").replace(" force", ""), deleted(s));
    s.eventually("both pods are back", 180, || {
        let (ready, set) = (s.field("statefulset/web", "/status/readyReplicas"), uids(s));
        if ready == 2 && set.len() == 2 && set.iter().all(|u| !before.uids.contains(u)) {
            Ok(())
        } else {
            Err(format!("{ready} ready"))
        }
    });
    resolve(s);
    assert!(s.run("kubectl delete -f statefulset.yaml").contains(r#"statefulset.apps "web" deleted"#));
    s.gone("pods -l app=nginx", 90);
}

/// Today's kubectl names the namespace too.
fn deleted(s: &Session) -> String {
    let place = match s.version {
        pilothouse_tests::kubectl::Version::V1_20 => String::new(),
        pilothouse_tests::kubectl::Version::Current => format!(" from {} namespace", s.namespace),
    };
    format!("pod \"web-0\" deleted{place}\npod \"web-1\" deleted{place}\n")
}

fn running_at(seen: &str, pod: &str) -> Option<usize> {
    seen.lines().position(|l| l.starts_with(&format!("{pod} ")) && l.contains("1/1") && l.contains("Running"))
}

fn uids(s: &Session) -> Vec<String> {
    let pods = s.get("pods -l app=nginx");
    let items = pods["items"].as_array().cloned().unwrap_or_default();
    items.iter().filter_map(|p| p["metadata"]["uid"].as_str().map(String::from)).collect()
}

struct Resolved {
    uids: Vec<String>,
}

/// Both pods' names, looked up from a pod on a terminal, give their addresses.
fn resolve(s: &Session) -> Resolved {
    let shown = s.terminal(
        "kubectl run -i --tty --image busybox dns-test --restart=Never --rm /bin/sh",
        "nslookup web-0.nginx\nnslookup web-1.nginx\nexit\n",
    );
    for pod in ["web-0", "web-1"] {
        let address = s.field(&format!("pod/{pod}"), "/status/podIP");
        let address = address.as_str().expect("a pod's address");
        assert!(
            shown.contains(&format!("{pod}.nginx")) && shown.contains(address),
            "{pod} is {address}:\n{shown}"
        );
    }
    s.gone("pod/dns-test", 60);
    Resolved { uids: uids(s) }
}

/// Claims of the template, and data that stays with the name.
fn storage(s: &Session) {
    s.example("statefulset-01-service-nginx.yaml", "svc.yaml");
    s.example("statefulset-03-statefulset-web.yaml", "statefulset.yaml");
    s.run("kubectl create -f svc.yaml");
    s.run("kubectl create -f statefulset.yaml");
    s.expect("statefulset/web", "/status/readyReplicas", 2, 180);
    let claims = s.run("kubectl get pvc -l app=nginx --no-headers");
    for (line, name) in claims.lines().zip(["www-web-0", "www-web-1"]) {
        let fields: Vec<&str> = line.split_whitespace().collect();
        assert_eq!((fields[0], fields[1], fields[3], fields[4]), (name, "Bound", "1Gi", "RWO"), "{claims}");
        assert!(fields[2].starts_with("pvc-"), "{claims}");
    }
    s.run("for i in 0 1; do kubectl exec web-$i -- sh -c 'echo hello $(hostname) > /usr/share/nginx/html/index.html'; done");
    let said = s.run("for i in 0 1; do kubectl exec web-$i -- curl -s localhost; done");
    assert_eq!(said, "hello web-0\nhello web-1\n");
    let old = uids(s);
    s.run("kubectl delete pod -l app=nginx");
    s.eventually("both pods are back", 180, || {
        let new = uids(s);
        let ready = s.field("statefulset/web", "/status/readyReplicas");
        if ready == 2 && new.len() == 2 && new.iter().all(|u| !old.contains(u)) {
            Ok(())
        } else {
            Err(format!("{ready} ready"))
        }
    });
    let shown = s.terminal("kubectl exec -it web-0 -- curl -s localhost", "");
    assert!(shown.contains("hello web-0"), "{shown}");
    assert_eq!(s.run("kubectl exec web-1 -- curl -s localhost"), "hello web-1\n");
    // Claims outlive their set, and volumes go with their claims.
    s.run("kubectl delete -f statefulset.yaml");
    s.gone("pods -l app=nginx", 90);
    let volume = s.field("pvc/www-web-0", "/spec/volumeName");
    let volume = volume.as_str().expect("a volume's name");
    s.run("kubectl delete pvc -l app=nginx");
    s.gone(&format!("pv/{volume}"), 60);
}

fn scaling_goes_in_order(s: &Session) {
    s.example("statefulset-01-service-nginx.yaml", "svc.yaml");
    s.example("statefulset-02-statefulset-web.yaml", "statefulset.yaml");
    s.run("kubectl create -f svc.yaml -f statefulset.yaml");
    s.expect("statefulset/web", "/status/readyReplicas", 2, 180);
    let _watch = s.background("kubectl get pods -w -l app=nginx --output-watch-events --no-headers", "watch");
    assert_eq!(s.run("kubectl scale statefulset web --replicas=4"), "statefulset.apps/web scaled\n");
    s.expect("statefulset/web", "/status/readyReplicas", 4, 180);
    s.run("kubectl scale statefulset web --replicas=1");
    s.gone("pod/web-1", 180);
    s.eventually("the watch shows the last deletion", 20, || {
        if position(&s.read("watch"), "DELETED", "web-1").is_some() { Ok(()) } else { Err("not yet".into()) }
    });
    let seen = s.read("watch");
    let at = |event: &str, pod: &str| {
        position(&seen, event, pod).unwrap_or_else(|| panic!("no {event} {pod}:\n{seen}"))
    };
    let ready = |pod: &str| {
        seen.lines()
            .position(|l| l.contains(&format!(" {pod} ")) && l.contains("1/1"))
            .unwrap_or_else(|| panic!("{seen}"))
    };
    assert!(ready("web-2") < at("ADDED", "web-3"), "{seen}");
    assert!(
        at("DELETED", "web-3") < at("DELETED", "web-2") && at("DELETED", "web-2") < at("DELETED", "web-1"),
        "{seen}"
    );
    assert_eq!(s.run("kubectl get pods -l app=nginx -o name"), "pod/web-0\n");
}

fn position(seen: &str, event: &str, pod: &str) -> Option<usize> {
    seen.lines().position(|l| l.starts_with(event) && l.split_whitespace().any(|w| w == pod))
}

fn updates_stop_at_the_partition(s: &Session) {
    s.example("statefulset-01-service-nginx.yaml", "svc.yaml");
    s.example("statefulset-02-statefulset-web.yaml", "statefulset.yaml");
    s.run("kubectl create -f svc.yaml -f statefulset.yaml");
    s.expect("statefulset/web", "/status/readyReplicas", 2, 180);
    s.run(r#"kubectl patch statefulset web -p '{"spec":{"updateStrategy":{"type":"RollingUpdate","rollingUpdate":{"partition":1}}}}'"#);
    s.run("kubectl set image statefulset/web nginx=nginx");
    s.expect("pod/web-1", "/spec/containers/0/image", "nginx", 120);
    s.expect("statefulset/web", "/status/readyReplicas", 2, 120);
    assert_eq!(s.field("pod/web-0", "/spec/containers/0/image"), "nginx:1.9.1");
    let status = &s.get("statefulset/web")["status"];
    assert_ne!(status["currentRevision"], status["updateRevision"]);
    s.run(
        r#"kubectl patch statefulset web -p '{"spec":{"updateStrategy":{"rollingUpdate":{"partition":0}}}}'"#,
    );
    let said = s.run("kubectl rollout status statefulset/web --timeout=120s");
    assert!(said.contains("complete") || said.contains("rolling update complete"), "{said}");
    assert_eq!(s.field("pod/web-0", "/spec/containers/0/image"), "nginx");
}

/// The shape of an Elasticsearch cluster: privileged init containers, downward API, limits, claims. Its namespace and
/// its class are the manifests' own, so only one of these tests runs at a time.
fn elasticsearch(s: &Session) {
    for (example, name) in [
        ("statefulset-04-service-elasticsearch.yaml", "elasticsearch-svc.yaml"),
        ("statefulset-05-deployment-nfs-client-provisioner.yaml", "nfs-client.yaml"),
        ("statefulset-06-serviceaccount-nfs-client-provisioner.yaml", "nfs-client-sa.yaml"),
        ("statefulset-07-storageclass-es-data-db.yaml", "elasticsearch-storageclass.yaml"),
        ("statefulset-08-statefulset-es.yaml", "elasticsearch-statefulset.yaml"),
    ] {
        s.example(example, name);
    }
    s.run("kubectl delete namespace logging --ignore-not-found");
    s.run("kubectl create namespace logging");
    s.run("kubectl create -f elasticsearch-svc.yaml");
    let service = s.run("kubectl get svc -n logging --no-headers");
    assert!(service.contains("None") && service.contains("9200/TCP,9300/TCP"), "{service}");
    s.run("kubectl create -f nfs-client.yaml -f nfs-client-sa.yaml -f elasticsearch-storageclass.yaml");
    s.expect("deployment/nfs-client-provisioner", "/status/replicas", 1, 30);
    let class = s.run("kubectl get storageclass es-data-db --no-headers");
    assert!(class.contains("fuseim.pri/ifs"), "{class}");
    // Its provisioner would need an NFS server: volumes are made by hand instead, as the document says of its first ones.
    for i in 0..3 {
        s.file("volume.yaml", &format!(
            "apiVersion: v1\nkind: PersistentVolume\nmetadata:\n  name: {}-{i}\nspec:\n  capacity:\n    storage: 100Gi\n  \
             accessModes: [ReadWriteOnce]\n  storageClassName: es-data-db\n  hostPath:\n    path: /var/lib/es-{i}\n    type: DirectoryOrCreate\n",
            s.namespace
        ));
        s.run("kubectl create -f volume.yaml");
    }
    // Processes of this machine may not raise their limits everywhere: the second init container shows which it is.
    if s.cluster.output("prlimit --nofile=65536:65536 true").status.success() {
        s.run("kubectl create -f elasticsearch-statefulset.yaml");
    } else {
        s.run(
            "sed 's/ulimit -n 65536/ulimit -n 16384/' elasticsearch-statefulset.yaml | kubectl create -f -",
        );
    }
    s.expect("pod/es-0 -n logging", "/status/phase", "Running", 180);
    s.expect("pod/es-0 -n logging", "/status/containerStatuses/0/ready", true, 60);
    let pod = s.get("pod/es-0 -n logging");
    let inits = pod["status"]["initContainerStatuses"].as_array().cloned().unwrap_or_default();
    let reasons: Vec<_> = inits.iter().map(|c| &c["state"]["terminated"]["reason"]).collect();
    assert_eq!(reasons, ["Completed", "Completed"], "{inits:?}");
    assert_eq!(pod["spec"]["containers"][0]["resources"]["requests"]["cpu"], "1");
    assert_eq!(s.field("pvc/data-es-0 -n logging", "/status/phase"), "Bound");
    assert!(s.run("kubectl exec -n logging es-0 -c elasticsearch -- env").contains("node.name=es-0\n"));
    let forward = s.background("kubectl port-forward es-0 19200:9200 --namespace=logging", "forward");
    let state = s.eventually("the forwarded port answers", 30, || {
        s.try_run("curl -sS http://127.0.0.1:19200/_cluster/state")
    });
    assert!(state.contains("k8s-logs"), "{state}");
    drop(forward);
    s.run("kubectl delete namespace logging");
    s.run(&format!(
        "kubectl delete -f nfs-client.yaml -f nfs-client-sa.yaml -f elasticsearch-storageclass.yaml; \
         kubectl delete pv {0}-0 {0}-1 {0}-2",
        s.namespace
    ));
}

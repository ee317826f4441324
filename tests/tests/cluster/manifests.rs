//! Every example manifest, applied twice; and what deletion leaves.

use pilothouse_tests::kubectl::Session;
use pilothouse_tests::paths;

crate::with_each_kubectl!(manifests_applied_twice_are_unchanged);
crate::with_one_kubectl!(deletion_leaves_nothing_on_the_node);

fn manifests_applied_twice_are_unchanged(s: &Session) {
    s.run("kubectl delete namespace logging --ignore-not-found && kubectl create namespace logging");
    let dir = paths::project().join("config/examples");
    let mut names: Vec<String> = std::fs::read_dir(dir)
        .expect("the examples")
        .flatten()
        .filter_map(|e| e.file_name().into_string().ok())
        .collect();
    names.sort();
    assert!(names.len() >= 18, "{names:?}");
    for name in names {
        s.example(&name, &name);
        // A template's name is filled in before it is a manifest.
        s.run(&format!("sed -i 's/\\$ITEM/apple/' {name}"));
        let first = s.run(&format!("kubectl apply -f {name}"));
        assert!(first.lines().all(|l| l.ends_with(" created")), "{name}:\n{first}");
        let generation = || {
            s.run(&format!("kubectl get -f {name} -o jsonpath='{{.metadata.generation}}{{.items[*].metadata.generation}}'"))
        };
        let before = generation();
        let second = s.run(&format!("kubectl apply -f {name}"));
        // kubectl compares claim templates as a whole, defaults included, and finds them "configured" with any server:
        // then it is the server that finds nothing changed.
        let templates = s.read(&name).contains("volumeClaimTemplates");
        let same = |line: &str| line.ends_with(" unchanged") || (templates && line.ends_with(" configured"));
        assert!(second.lines().all(same), "{name}:\n{second}");
        assert_eq!(generation(), before, "{name}");
        assert_eq!(first.lines().count(), second.lines().count());
        let deleted = s.run(&format!("kubectl delete -f {name}"));
        assert_eq!(deleted.lines().count(), first.lines().count(), "{deleted}");
    }
    s.run("kubectl delete namespace logging");
}

/// No container, mount, address, rule or cgroup of a pod is left when it was deleted.
fn deletion_leaves_nothing_on_the_node(s: &Session) {
    s.example("statefulset-01-service-nginx.yaml", "svc.yaml");
    s.example("statefulset-03-statefulset-web.yaml", "statefulset.yaml");
    s.run("kubectl apply -f svc.yaml -f statefulset.yaml");
    s.run("kubectl create service nodeport web --tcp=80:80 && kubectl patch service web -p '{\"spec\":{\"selector\":{\"app\":\"nginx\"}}}'");
    s.expect("statefulset/web", "/status/readyReplicas", 2, 180);
    let pods = s.get("pods -l app=nginx");
    let pods = pods["items"].as_array().cloned().unwrap_or_default();
    let port = s.field("service/web", "/spec/ports/0/nodePort").to_string();
    s.eventually("the proxy has the node port", 30, || {
        let rules = s.cluster.sh("nft list ruleset");
        if rules.contains(&port) { Ok(()) } else { Err("no rule".into()) }
    });
    s.run("kubectl delete service web && kubectl delete -f svc.yaml -f statefulset.yaml && kubectl delete pvc -l app=nginx");
    s.gone("pods,pvc", 120);
    s.eventually("no trace of the pods", 180, || {
        let mut traces = Vec::new();
        for pod in &pods {
            let (uid, address) = (pod["metadata"]["uid"].as_str().unwrap_or("?"), pod["status"]["podIP"].as_str().unwrap_or("?"));
            let look = format!(
                "grep -h {uid} /proc/self/mountinfo; find /sys/fs/cgroup -type d -name 'pod{uid}'; ls -d {0}/kubelet/pods/{uid} {0}/containerd/cni-ipam/pilothouse/{address} 2>/dev/null; \
                 ctr -a {0}/containerd/containerd.sock -n k8s.io containers ls 'labels.\"io.kubernetes.pod.uid\"=={uid}' -q; nft list ruleset | grep -w {address}; \
                 iptables-save 2>/dev/null | grep -w {address}; true",
                pilothouse_tests::cluster::DATA_DIR
            );
            traces.push(s.cluster.sh(&look));
        }
        let rules = s.cluster.sh(&format!("nft list ruleset | grep -w {port}; true"));
        let traces = traces.concat() + &rules;
        if traces.trim().is_empty() { Ok(()) } else { Err(traces) }
    });
}

//! The process and the machine: restarts, and taking all away.

use pilothouse_tests::cluster::{Cluster, DATA_DIR};
use pilothouse_tests::kubectl::{Session, Version};
use pilothouse_tests::paths;

/// These run alone on the shared cluster.
mod shared {
    #[test]
    fn killed_and_started_again() {
        crate::on_cluster(
            "whole_cluster::shared::killed_and_started_again",
            super::Version::V1_20,
            super::killed_and_started_again,
        );
    }

    #[test]
    fn stopped_and_started_again() {
        crate::on_cluster(
            "whole_cluster::shared::stopped_and_started_again",
            super::Version::V1_20,
            super::stopped_and_started_again,
        );
    }
}

/// A pod that writes down when it was started.
fn running_pod(s: &Session) -> (String, serde_json::Value) {
    s.run("kubectl run stays --image=nginx --image-pull-policy=IfNotPresent --port=80 --labels=app=stays && kubectl expose pod stays --port=80");
    s.expect("pod/stays", "/status/phase", "Running", 90);
    s.run("kubectl create configmap written --from-literal=last=word");
    let address = s.field("service/stays", "/spec/clusterIP");
    let url = format!("http://{}/", address.as_str().unwrap_or_default());
    s.eventually("the service answers", 30, || s.try_run(&format!("curl -sS -m 3 {url}")));
    (url, s.field("pod/stays", "/status/containerStatuses"))
}

fn same_after_restart(s: &Session, url: &str, before: &serde_json::Value) {
    assert_eq!(s.run("kubectl get configmap written -o jsonpath={.data.last}"), "word");
    // New work shows that kubelet, scheduler and controllers are back.
    s.run("kubectl create deployment fresh --image=nginx && kubectl rollout status deployment/fresh --timeout=120s");
    assert_eq!(&s.field("pod/stays", "/status/containerStatuses"), before);
    s.run(&format!("curl -sS -m 3 {url}"));
    s.run("kubectl exec stays -- true");
}

fn killed_and_started_again(s: &Session) {
    let (url, before) = running_pod(s);
    // Writes go on until the moment of the kill: each that was answered must be there afterwards.
    let writer = s.background(
        "bash -c 'i=0; while kubectl create configmap count-$i >/dev/null 2>&1; do echo $i; i=$((i + 1)); done'",
        "written",
    );
    s.eventually("some writes", 30, || {
        if s.read("written").lines().count() >= 10 { Ok(()) } else { Err("few".into()) }
    });
    s.cluster.sh("kill -9 $(cat /run/up.pid)");
    // Pods and services work on without us.
    s.run(&format!("curl -sS -m 3 {url}"));
    s.cluster.start_up();
    s.cluster.wait_ready();
    drop(writer);
    let there = s.run("kubectl get configmaps -o name");
    for number in s.read("written").lines() {
        assert!(there.lines().any(|n| n == format!("configmap/count-{number}")), "count-{number} is lost");
    }
    same_after_restart(s, &url, &before);
}

fn stopped_and_started_again(s: &Session) {
    let (url, before) = running_pod(s);
    s.cluster.sh("kill $(cat /run/up.pid); for i in $(seq 300); do kill -0 $(cat /run/up.pid) 2>/dev/null || exit 0; sleep 0.1; done; exit 1");
    s.cluster.start_up();
    s.cluster.wait_ready();
    same_after_restart(s, &url, &before);
}

/// `reset` after `up`: the machine is as before.
#[test]
fn reset_leaves_nothing() {
    let cluster = match Cluster::own("reset") {
        Ok(cluster) => cluster,
        Err(why) => return paths::skip("whole_cluster::reset_leaves_nothing", &why),
    };
    let program = paths::pilothouse();
    let reset = format!("{} reset --data-dir={DATA_DIR}", program.display());
    let session = Session::open(&cluster, Version::V1_20, "reset").unwrap();
    session.example("statefulset-01-service-nginx.yaml", "svc.yaml");
    session.example("statefulset-03-statefulset-web.yaml", "set.yaml");
    session.run("kubectl apply -f svc.yaml -f set.yaml");
    session.run(
        "kubectl run port --image=nginx --image-pull-policy=IfNotPresent \
         --overrides='{\"spec\":{\"containers\":[{\"name\":\"c\",\"image\":\"nginx\",\"ports\":[{\"containerPort\":80,\"hostPort\":8088}]}]}}'",
    );
    session.expect("statefulset/web", "/status/readyReplicas", 2, 180);
    session.expect("pod/port", "/status/phase", "Running", 60);
    assert!(session.run("curl -sS -m 5 http://20.0.0.100:8088/").contains("nginx"));

    let refused = cluster.output(&reset);
    assert!(!refused.status.success(), "reset while the cluster runs");
    session.run("kubectl get nodes");
    drop(session);
    cluster.sh("kill $(cat /run/up.pid); for i in $(seq 300); do kill -0 $(cat /run/up.pid) 2>/dev/null || exit 0; sleep 0.1; done; exit 1");
    cluster.sh(&reset);
    let left = cluster.sh(&format!(
        "ls -d {DATA_DIR} /var/log/pods/* /var/log/containers/* /run/netns/cni-* /var/lib/cni 2>/dev/null; \
         grep -l {DATA_DIR} /proc/[0-9]*/cmdline; grep {DATA_DIR} /proc/self/mountinfo; nft list ruleset; iptables-save | grep CNI; \
         ip route | grep -e unreachable -e 10.244 -e 10.0.0; ip -o link | grep -e pilothouse0 -e veth; \
         find /sys/fs/cgroup -type d -name 'kubepods*'; true"
    ));
    // The shell that looks has the folder's name in its own command line.
    let left: Vec<&str> = left.lines().filter(|l| !l.starts_with("/proc/")).collect();
    assert!(left.is_empty(), "left:\n{}", left.join("\n"));
    assert_eq!(cluster.sh("pgrep -c containerd; true").trim(), "0");
    cluster.sh(&reset);
}

//! Claims and volumes beside StatefulSets.

use pilothouse_tests::kubectl::Session;

crate::with_one_kubectl!(claims_wait_for_a_pod_and_keep_data, volumes_made_by_hand_are_bound);

const CLAIM: &str = "apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata:\n  name: NAME\nspec:\n  accessModes: [ReadWriteOnce]\n  \
                     storageClassName: CLASS\n  resources:\n    requests:\n      storage: 1Gi\n";

fn user(s: &Session, name: &str, claim: &str, command: &str) {
    s.file(&format!("{name}.yaml"), &format!(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\nspec:\n  restartPolicy: Never\n  containers:\n  - name: c\n    image: busybox\n    \
         imagePullPolicy: IfNotPresent\n    command: [sh, -c, \"{command}\"]\n    volumeMounts:\n    - name: v\n      mountPath: /v\n  volumes:\n  \
         - name: v\n    persistentVolumeClaim:\n      claimName: {claim}\n"
    ));
    s.run(&format!("kubectl create -f {name}.yaml"));
}

fn claims_wait_for_a_pod_and_keep_data(s: &Session) {
    s.file("claim.yaml", &CLAIM.replace("NAME", "data").replace("CLASS", "local-path"));
    s.run("kubectl create -f claim.yaml");
    let reason = s.eventually("why it waits", 30, || {
        let events = s.run(
            "kubectl get events --field-selector=involvedObject.name=data -o jsonpath={.items[*].reason}",
        );
        if events.contains("WaitForFirstConsumer") { Ok(events) } else { Err(events) }
    });
    assert!(!reason.contains("ProvisioningFailed"), "{reason}");
    assert_eq!(s.field("pvc/data", "/status/phase"), "Pending");
    user(s, "writes", "data", "echo kept > /v/file");
    s.expect("pod/writes", "/status/phase", "Succeeded", 90);
    assert_eq!(s.field("pvc/data", "/status/phase"), "Bound");
    user(s, "reads", "data", "cat /v/file");
    s.expect("pod/reads", "/status/phase", "Succeeded", 60);
    assert_eq!(s.run("kubectl logs reads"), "kept\n");
    // A claim in use stays until its pods are gone.
    user(s, "holds", "data", "sleep 3600");
    s.expect("pod/holds", "/status/phase", "Running", 60);
    s.run("kubectl delete pvc data --wait=false");
    let shown = s.run("kubectl get pvc data --no-headers");
    assert!(shown.contains("Terminating"), "{shown}");
    s.run("kubectl delete pod --all --grace-period=1");
    s.gone("pvc/data", 60);
}

fn volumes_made_by_hand_are_bound(s: &Session) {
    let class = format!("by-hand-{}", s.namespace);
    s.file("volume.yaml", &format!(
        "apiVersion: v1\nkind: PersistentVolume\nmetadata:\n  name: {class}\nspec:\n  capacity:\n    storage: 5Gi\n  accessModes: [ReadWriteOnce]\n  \
         persistentVolumeReclaimPolicy: Retain\n  storageClassName: {class}\n  hostPath:\n    path: /var/lib/{class}\n"
    ));
    s.file("claim.yaml", &CLAIM.replace("NAME", "data").replace("CLASS", &class));
    s.run("kubectl create -f volume.yaml -f claim.yaml");
    s.expect("pvc/data", "/status/phase", "Bound", 60);
    assert_eq!(s.field("pvc/data", "/status/capacity/storage"), "5Gi");
    s.run("kubectl delete pvc data");
    s.expect(&format!("pv/{class}"), "/status/phase", "Released", 60);
    s.run(&format!("kubectl delete pv {class}"));
}

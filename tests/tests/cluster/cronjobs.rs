//! CronJobs: the document's, and what overlapping runs do.

use pilothouse_tests::kubectl::Session;

crate::with_each_kubectl!(hello);
crate::with_one_kubectl!(
    forbidden_runs_are_left_out,
    replaced_runs_end,
    history_is_limited_and_suspension_stops_it
);

const CRONJOB: &str = "apiVersion: batch/v1beta1\nkind: CronJob\nmetadata:\n  name: c\nspec:\n  schedule: \"*/1 * * * *\"\n  SPEC\n  \
                       jobTemplate:\n    spec:\n      template:\n        spec:\n          containers:\n          - name: c\n            \
                       image: busybox\n            command: [sh, -c, \"COMMAND\"]\n          restartPolicy: OnFailure\n          \
                       terminationGracePeriodSeconds: 0\n";

fn cronjob(s: &Session, spec: &str, command: &str) {
    s.file("cronjob.yaml", &CRONJOB.replace("SPEC", spec).replace("COMMAND", command));
    s.run("kubectl apply -f cronjob.yaml");
}

fn jobs(s: &Session) -> Vec<String> {
    let names = s.run("kubectl get jobs -o name --sort-by=.metadata.creationTimestamp");
    names.lines().map(|n| n.trim_start_matches("job.batch/").to_string()).collect()
}

fn hello(s: &Session) {
    s.example("job-06-cronjob-hello.yaml", "cronjob.yaml");
    let created = s.run("kubectl create -f ./cronjob.yaml");
    assert!(created.starts_with("cronjob.batch/hello created"), "{created}");
    let name = s.eventually("a job is made and done", 110, || {
        let job = jobs(s).into_iter().next().ok_or("no job")?;
        if s.field(&format!("job/{job}"), "/status/succeeded") == 1 { Ok(job) } else { Err(job) }
    });
    let number = name.strip_prefix("hello-").expect("the cron job's name");
    assert!(number.chars().all(|c| c.is_ascii_digit()), "{name}");
    let shown = s.run("kubectl get cronjob hello");
    assert!(
        shown.contains("SCHEDULE") && shown.contains("*/1 * * * *") && shown.contains("False"),
        "{shown}"
    );
    let logs = s.run(&format!("kubectl logs job/{name}"));
    assert!(logs.contains("Hello from the Kubernetes cluster"), "{logs}");
    let described = s.run("kubectl describe cronjob hello");
    assert!(described.contains(&format!("Created job {name}")), "{described}");
    s.run("kubectl delete cronjob hello");
    s.gone("jobs,pods", 90);
}

fn forbidden_runs_are_left_out(s: &Session) {
    cronjob(s, "concurrencyPolicy: Forbid", "sleep 600");
    let first = s.eventually("the first run", 80, || jobs(s).into_iter().next().ok_or("none".to_string()));
    // The next minute comes, and no run with it.
    std::thread::sleep(std::time::Duration::from_secs(80));
    assert_eq!(jobs(s), [first]);
}

fn replaced_runs_end(s: &Session) {
    cronjob(s, "concurrencyPolicy: Replace", "sleep 600");
    let first = s.eventually("the first run", 80, || jobs(s).into_iter().next().ok_or("none".to_string()));
    s.eventually("another run in its place", 110, || {
        let now = jobs(s);
        if now.len() == 1 && now[0] != first { Ok(()) } else { Err(format!("{now:?}")) }
    });
}

fn history_is_limited_and_suspension_stops_it(s: &Session) {
    cronjob(s, "successfulJobsHistoryLimit: 1", "true");
    let first = s.eventually("the first run", 80, || jobs(s).into_iter().next().ok_or("none".to_string()));
    s.gone(&format!("job/{first}"), 130);
    s.run(r#"kubectl patch cronjob c -p '{"spec":{"suspend":true}}'"#);
    let shown = s.run("kubectl get cronjob c --no-headers");
    assert!(shown.contains("True"), "{shown}");
    let before = jobs(s);
    // A whole minute passes without a run.
    std::thread::sleep(std::time::Duration::from_secs(65));
    let after = jobs(s);
    assert!(after.iter().all(|j| before.contains(j)), "{before:?}, then {after:?}");
}

//! Jobs: pi, parallelism, failures and deadlines, templates, work queues.

use pilothouse_tests::kubectl::Session;
use serde_json::Value;

crate::with_each_kubectl!(parallel_pi, jobs_of_a_template, work_queues);
crate::with_one_kubectl!(
    pi,
    pi_of_two_thousand_digits,
    failures_back_off,
    a_deadline_ends_a_job,
    finished_jobs_are_removed,
    restarts_happen_in_the_pod,
    a_job_may_not_restart_always
);

const JOB: &str = "apiVersion: batch/v1\nkind: Job\nmetadata:\n  name: NAME\nspec:\n  SPEC\n  template:\n    spec:\n      \
                   containers:\n      - name: c\n        image: busybox\n        command: [sh, -c, \"COMMAND\"]\n      \
                   restartPolicy: RESTART\n";

fn job(s: &Session, name: &str, spec: &str, command: &str, restart: &str) {
    let text = JOB
        .replace("NAME", name)
        .replace("SPEC", spec)
        .replace("COMMAND", command)
        .replace("RESTART", restart);
    s.file(&format!("{name}.yaml"), &text);
    s.run(&format!("kubectl create -f {name}.yaml"));
}

fn pods(s: &Session, job: &str) -> Vec<Value> {
    let list = s.get(&format!("pods -l job-name={job} --sort-by=.metadata.creationTimestamp"));
    list["items"].as_array().cloned().unwrap_or_default()
}

/// The condition of this type that is true.
fn condition(s: &Session, job: &str, type_: &str) -> Option<Value> {
    let conditions = s.field(&format!("job/{job}"), "/status/conditions");
    conditions.as_array()?.iter().find(|c| c["type"] == type_ && c["status"] == "True").cloned()
}

fn failed_for(s: &Session, job: &str, reason: &str, seconds: u64) {
    s.eventually(&format!("{job} fails for {reason}"), seconds, || match condition(s, job, "Failed") {
        Some(c) if c["reason"] == reason => Ok(()),
        other => Err(format!("{other:?}")),
    });
}

/// Ten thousand digits by bc; the generated selector; what describe shows.
fn pi(s: &Session) {
    s.example("job-01-job-pi.yaml", "job.yaml");
    assert_eq!(s.run("kubectl create -f job.yaml"), "job.batch/pi created\n");
    s.expect("job/pi", "/status/active", 1, 60);
    let created = s.get("job/pi");
    let uid = created["metadata"]["uid"].as_str().expect("a uid");
    let described = s.run("kubectl describe jobs/pi");
    for part in [
        &format!("controller-uid={uid}"),
        "job-name=pi",
        "Parallelism:",
        "Completions:",
        "SuccessfulCreate",
        "Created pod: pi-",
    ] {
        assert!(described.contains(part), "{part} is not in\n{described}");
    }
    let pod = &pods(s, "pi")[0];
    assert_eq!(pod["metadata"]["labels"]["controller-uid"], uid);
    // Minutes of a processor, which it shares with other tests.
    s.expect("job/pi", "/status/succeeded", 1, 1000);
    let shown = s.run("kubectl get pods -l job-name=pi --no-headers");
    assert!(shown.contains("0/1") && shown.contains("Completed"), "{shown}");
    let digits = s.run(&format!("kubectl logs {}", pod["metadata"]["name"].as_str().expect("a name")));
    assert!(digits.starts_with("3.14159265358979323846264338327950"), "{digits}");
    assert!(condition(s, "pi", "Complete").is_some());
    s.run("kubectl delete -f job.yaml");
    s.gone("pods -l job-name=pi", 60);
}

/// Four pods, two at a time.
fn parallel_pi(s: &Session) {
    s.example("job-02-job-pi.yaml", "job.yaml");
    // Fewer digits: it is the order that matters here.
    s.run("sed 's/scale=5000/scale=1000/' job.yaml | kubectl create -f -");
    let mut most = 0;
    s.eventually("four pods succeeded", 300, || {
        let status = s.field("job/pi", "/status");
        most = most.max(status["active"].as_i64().unwrap_or(0));
        if status["succeeded"] == 4 { Ok(()) } else { Err(status.to_string()) }
    });
    assert_eq!(most, 2);
    assert_eq!(pods(s, "pi").len(), 4);
    let shown = s.run("kubectl get job pi --no-headers");
    assert!(shown.contains("4/4"), "{shown}");
}

fn pi_of_two_thousand_digits(s: &Session) {
    s.example("job-07-job-pi.yaml", "job.yaml");
    s.run("kubectl create -f job.yaml");
    s.run("kubectl wait --for=condition=complete job/pi --timeout=540s");
    let digits = s.run("kubectl logs job/pi");
    assert!(digits.starts_with("3.14159265358979") && digits.trim().len() == 2001, "{digits}");
}

/// The document's loop with sed.
fn jobs_of_a_template(s: &Session) {
    s.example("job-03-job-process-item-ITEM.yaml", "job-tmpl.yaml");
    s.run(
        "mkdir ./jobs && for i in apple banana cherry\ndo\n  cat job-tmpl.yaml | sed \"s/\\$ITEM/$i/\" > ./jobs/job-$i.yaml\ndone",
    );
    let created = s.run("kubectl create -f ./jobs");
    assert_eq!(created.lines().count(), 3, "{created}");
    s.eventually("three pods completed", 120, || {
        let shown = s.run("kubectl get pods -l jobgroup=jobexample --no-headers");
        if shown.matches("Completed").count() == 3 { Ok(()) } else { Err(shown) }
    });
    let logs = s.run("kubectl logs -l jobgroup=jobexample");
    for item in ["apple", "banana", "cherry"] {
        assert!(logs.contains(&format!("Processing item {item}")), "{logs}");
    }
}

const QUEUE: &str = "apiVersion: v1\nkind: Service\nmetadata:\n  name: rabbitmq-service\nspec:\n  ports:\n  - port: 5672\n  \
                     selector:\n    app: rabbitmq\n---\napiVersion: v1\nkind: Pod\nmetadata:\n  name: rabbitmq\n  labels:\n    \
                     app: rabbitmq\nspec:\n  containers:\n  - name: rabbitmq\n    image: rabbitmq\n    imagePullPolicy: IfNotPresent\n    \
                     readinessProbe:\n      tcpSocket:\n        port: 5672\n";

/// A real queue, filled; one Job takes an item with each pod, the other empties it.
fn work_queues(s: &Session) {
    s.file("queue.yaml", QUEUE);
    s.run("kubectl apply -f queue.yaml");
    s.expect("pod/rabbitmq", "/status/containerStatuses/0/ready", true, 240);
    let fill = |queue: &str, pod: &str| {
        let url = "--url=amqp://guest:guest@rabbitmq-service:5672";
        let publish = format!(
            "amqp-declare-queue {url} --queue={queue}; for f in apple banana cherry date fig grape lemon melon; do \
             amqp-publish {url} -r {queue} -p -b $f; done"
        );
        s.run(&format!("kubectl run {pod} --image=myrepo/job-wq-1 --image-pull-policy=IfNotPresent --restart=Never --command -- sh -ec '{publish}'"));
        s.expect(&format!("pod/{pod}"), "/status/phase", "Succeeded", 60);
    };
    fill("job1", "fill-1");
    s.example("job-04-job-job-wq-1.yaml", "job-wq-1.yaml");
    s.run("kubectl create -f job-wq-1.yaml");
    s.expect("job/job-wq-1", "/status/succeeded", 8, 240);
    let logs = s.run("kubectl logs -l job-name=job-wq-1 --tail=-1");
    for item in ["apple", "banana", "cherry", "date", "fig", "grape", "lemon", "melon"] {
        assert_eq!(logs.matches(&format!("Processing {item}")).count(), 1, "{logs}");
    }
    fill("job2", "fill-2");
    s.example("job-05-job-job-wq-2.yaml", "job-wq-2.yaml");
    s.run("kubectl create -f job-wq-2.yaml");
    s.eventually("job-wq-2 is complete", 120, || {
        condition(s, "job-wq-2", "Complete").ok_or("not yet".to_string())
    });
    let logs = s.run("kubectl logs -l job-name=job-wq-2 --tail=-1");
    assert_eq!((logs.matches("Processing").count(), logs.matches("Queue empty").count()), (8, 2), "{logs}");
}

/// A new pod 10 s after the first failure, the next 20 s after the second, and no third.
fn failures_back_off(s: &Session) {
    job(s, "fails", "backoffLimit: 2", "exit 3", "Never");
    failed_for(s, "fails", "BackoffLimitExceeded", 120);
    let pods = pods(s, "fails");
    assert_eq!(pods.len(), 3);
    let seconds = |v: &Value| -> i64 {
        let time = v.as_str().expect("a time");
        let clock: Vec<i64> = time[11..19].split(':').map(|n| n.parse().expect("a number")).collect();
        clock[0] * 3600 + clock[1] * 60 + clock[2]
    };
    for (pair, (least, most)) in pods.windows(2).zip([(10, 18), (20, 30)]) {
        let ended = seconds(&pair[0]["status"]["containerStatuses"][0]["state"]["terminated"]["finishedAt"]);
        let next = seconds(&pair[1]["metadata"]["creationTimestamp"]);
        let delay = (next - ended).rem_euclid(86_400);
        assert!((least - 1..=most).contains(&delay), "{delay} s where {least} s to {most} s were due");
    }
    let message = condition(s, "fails", "Failed").expect("a condition")["message"].clone();
    assert_eq!(message, "Job has reached the specified backoff limit");
    assert!(s.run("kubectl describe job fails").contains("BackoffLimitExceeded"));
}

fn a_deadline_ends_a_job(s: &Session) {
    job(s, "slow", "activeDeadlineSeconds: 4", "sleep 600", "Never");
    failed_for(s, "slow", "DeadlineExceeded", 60);
    assert_eq!(
        condition(s, "slow", "Failed").expect("a condition")["message"],
        "Job was active longer than specified deadline"
    );
    s.gone("pods -l job-name=slow --field-selector=status.phase=Running", 60);
}

fn finished_jobs_are_removed(s: &Session) {
    s.example("job-10-job-pi-with-ttl.yaml", "job.yaml");
    // The same but for its patience.
    s.run("sed 's/ttlSecondsAfterFinished: 100/ttlSecondsAfterFinished: 3/; s/2000/20/' job.yaml | kubectl create -f -");
    s.gone("job/pi-with-ttl", 120);
    s.gone("pods -l job-name=pi-with-ttl", 60);
}

/// With `OnFailure` it is the container that is started again.
fn restarts_happen_in_the_pod(s: &Session) {
    job(
        s,
        "again",
        "backoffLimit: 4",
        "test -e /tmp/again || { touch /tmp/again; exit 1; }; exit 0",
        "OnFailure",
    );
    s.eventually("the container was started again", 90, || {
        let pods = pods(s, "again");
        let restarts = pods.first().map(|p| p["status"]["containerStatuses"][0]["restartCount"].clone());
        if pods.len() == 1 && restarts.as_ref().is_some_and(|r| r.as_i64() >= Some(1)) {
            Ok(())
        } else {
            Err(format!("{restarts:?}"))
        }
    });
}

fn a_job_may_not_restart_always(s: &Session) {
    s.file(
        "job.yaml",
        &JOB.replace("NAME", "always")
            .replace("SPEC", "backoffLimit: 4")
            .replace("COMMAND", "true")
            .replace("RESTART", "Always"),
    );
    let said = s.fails("kubectl create -f job.yaml");
    assert!(
        said.contains("spec.template.spec.restartPolicy: ") && said.contains("\"OnFailure\", \"Never\""),
        "{said}"
    );
}

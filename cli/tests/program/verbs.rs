//! The verbs against a fake node: what they ask, what they print, how they end.

use std::time::{Duration, Instant};

use crate::support::FakeNode;
use assert_cmd::Command;
use assert_cmd::assert::Assert;
use serde_json::{Value, json};

fn bare() -> Command {
    let mut command = Command::cargo_bin("selvedge").unwrap();
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("SELVEDGE_")) {
        command.env_remove(name);
    }
    command.env("SELVEDGE_CONFIG", "/nonexistent/selvedge.toml");
    command.timeout(Duration::from_secs(30));
    command
}

fn selvedge(node: &FakeNode, line: &str) -> Assert {
    bare()
        .args(["--addr", &node.addr()])
        .args(line.split_whitespace())
        .assert()
}

fn out(assert: &Assert) -> String {
    String::from_utf8(assert.get_output().stdout.clone()).unwrap()
}

fn err(assert: &Assert) -> String {
    String::from_utf8(assert.get_output().stderr.clone()).unwrap()
}

fn key(name: &str) -> Value {
    json!({"namespace": "default", "name": name})
}

fn spec() -> Value {
    json!({
        "containerConcurrency": 0, "timeoutSeconds": 300, "serviceAccountName": null,
        "containers": [{
            "name": "user-container", "image": "web:1", "command": [], "args": [],
            "workingDir": null, "env": [{"name": "KEEP", "value": "1", "secret": null}],
            "ports": [], "cpuMillis": 0, "memoryBytes": 0, "pids": 0, "readiness": null,
            "liveness": null, "startup": null, "volumeMounts": [], "imagePullPolicy": "",
            "security": {"runAsUser": null, "runAsGroup": null,
                         "readOnlyRootFilesystem": false, "addCapabilities": []},
        }],
        "volumes": [], "place": {"regions": [], "spread": "none", "require": {}},
        "terminationGraceSeconds": 10, "labels": {}, "annotations": {},
    })
}

fn service() -> Value {
    json!({
        "key": key("web"),
        "meta": {"uid": "u", "generation": 1, "resourceVersion": 7, "created": 0,
                 "labels": {}, "annotations": {}},
        "spec": spec(),
        "scale": {"min": 0, "max": 4, "target": 0, "utilizationPercent": 70,
                  "windowSeconds": 60, "initial": 1},
        "traffic": [],
        "status": {"latestCreated": key("web-00001"), "latestReady": null},
    })
}

fn view(ready: u32) -> Value {
    json!({
        "service": service(), "url": "http://web.edge.internal",
        "instances": {"ready": ready},
        "condition": {"ready": "True", "reason": "", "message": ""},
    })
}

fn deployed() -> Value {
    json!({
        "service": service(), "createdRevision": key("web-00001"), "index": 7, "receipt": null,
        "image": {"reference": "web:1", "digest": "sha256:abc"},
    })
}

fn instance(id: &str, state: &str, failure: impl Into<Value>) -> Value {
    let failure = failure.into();
    json!({
        "id": id, "namespace": "default", "service": "web", "revision": "web-00001", "node": 1,
        "nodeName": "par-1", "region": "par", "state": state, "since": 0, "inFlight": 0,
        "failure": failure, "alive": true,
    })
}

const PUT: &str = "PUT /v1/services/default/web";
const GET: &str = "GET /v1/services/default/web";
const WAIT: &str = "GET /v1/services/default/web/wait";

#[test]
fn deploy_waits_and_says_where_to_call() {
    let node = FakeNode::start();
    node.json(PUT, &deployed());
    node.answer(GET, 404, r#"{"code":"notFound","message":"no"}"#)
        .json(GET, &view(1));
    node.json(WAIT, &json!({"state": "pending", "instances": [instance("web-00001-a", "Starting", Value::Null)]}));
    node.json(
        WAIT,
        &json!({"state": "ready", "instances": [instance("web-00001-a", "Ready", Value::Null)]}),
    );
    let run = selvedge(
        &node,
        "deploy web --image web:1 --scale 0..4 -e A=1 --memory 64Mi",
    );
    let (out, err) = (out(&run), err(&run));
    run.success();
    assert_eq!(out, "http://web.edge.internal\n");
    assert!(err.contains("par-1: web-00001-a Starting\n"), "{err}");
    assert!(err.contains("par-1: web-00001-a Ready\n"), "{err}");
    let body = node.body(PUT);
    assert_eq!(body["ifVersion"], 0);
    assert_eq!(body["scale"]["max"], 4);
    assert_eq!(body["spec"]["containers"][0]["memoryBytes"], 64 << 20);
    assert_eq!(body["spec"]["containers"][0]["env"][0]["name"], "A");
}

#[test]
fn deploy_by_flags_changes_only_what_they_name() {
    let node = FakeNode::start();
    node.json(PUT, &deployed()).json(GET, &view(1));
    let run = selvedge(&node, "deploy web --cpu 0.5 --no-wait -o name");
    assert_eq!(out(&run), "service/web\n");
    run.success();
    let body = node.body(PUT);
    assert_eq!(body["ifVersion"], 7);
    assert_eq!(body["spec"]["containers"][0]["image"], "web:1");
    assert_eq!(body["spec"]["containers"][0]["env"][0]["name"], "KEEP");
    assert_eq!(body["spec"]["containers"][0]["cpuMillis"], 500);
    assert_eq!(body["scale"]["max"], 4);
    assert!(node.asked(WAIT).is_empty());
}

#[test]
fn deploy_with_a_manifest_is_the_manifest() {
    let node = FakeNode::start();
    node.json("PUT /v1/services/edge/web", &deployed());
    node.json("GET /v1/services/edge/web", &view(1));
    let file = node.file(
        "web.toml",
        "name = 'web'\nnamespace = 'edge'\nimage = 'web:2'\nscale = 2\n",
    );
    let line = format!("deploy -f {} --no-wait -o json", file.display());
    let run = selvedge(&node, &line);
    let printed: Value = serde_json::from_str(&out(&run)).unwrap();
    run.success();
    assert_eq!(printed["url"], "http://web.edge.internal");
    let body = node.body("PUT /v1/services/edge/web");
    assert_eq!(body["ifVersion"], Value::Null);
    assert_eq!(
        (&body["scale"]["min"], &body["scale"]["max"]),
        (&json!(2), &json!(2))
    );
    assert_eq!(body["spec"]["containers"][0]["env"], json!([]));
}

#[test]
fn a_failed_revision_is_exit_1_with_its_last_words() {
    let node = FakeNode::start();
    node.json(PUT, &deployed());
    let failure = json!({"code": "Exited", "message": "exit code 3"});
    node.json(WAIT, &json!({
        "state": {"failed": {"reason": "Exited", "message": "web-00001-a ended with exit code 3"}},
        "instances": [instance("web-00001-a", "Failed", failure)],
    }));
    let line = json!({"time": 0, "node": "par-1", "instance": "web-00001-a", "stream": "stderr",
                      "line": "cannot open /etc/app.conf"});
    node.answer("GET /v1/logs", 200, format!("{line}\n"));
    let run = selvedge(&node, "deploy web --image web:1").code(1);
    let err = err(&run);
    for part in [
        "error: web-00001 failed: Exited: web-00001-a ended with exit code 3",
        "  par-1: web-00001-a Failed: Exited: exit code 3",
        "  | cannot open /etc/app.conf",
        "hint: selvedge describe revision/web-00001",
    ] {
        assert!(err.contains(part), "{part}\n---\n{err}");
    }
    assert_eq!(out(&run), "");
}

#[test]
fn a_wait_that_takes_too_long_is_exit_4() {
    let node = FakeNode::start();
    node.json(PUT, &deployed());
    node.json(WAIT, &json!({"state": "pending", "instances": []}));
    let run = selvedge(&node, "deploy web --image web:1 --wait-timeout 600ms").code(4);
    assert!(
        err(&run).contains("no node has started an instance yet"),
        "{}",
        err(&run)
    );
}

#[test]
fn images_are_pruned_after_a_look_and_never_without_a_yes() {
    let node = FakeNode::start();
    let digest = format!("sha256:{}", "ab".repeat(32));
    let image = json!({"reference": "hub/web:1", "digest": digest, "bytes": 2048});
    let (prune, rm) = (
        "POST /v1/images/prune",
        format!("DELETE /v1/images/sha256%3A{}", "ab".repeat(32)),
    );
    node.json(prune, &json!({"images": [image], "bytes": 2048}));
    let run = selvedge(&node, "image prune --all --dry-run").code(0);
    assert_eq!(
        out(&run),
        format!("hub/web:1 {digest} 2Ki\nwould free 2Ki\n")
    );
    assert_eq!(node.body(prune), json!({"all": true, "dryRun": true}));
    selvedge(&node, "image prune").code(2);
    assert_eq!(node.asked(prune).len(), 1, "nobody said yes");

    let held = json!([{"reference": "hub/web:1", "digest": digest, "bytes": 1, "nodes": []}]);
    node.json("GET /v1/images", &held);
    node.refuse(&rm, 422, "image", "image is in use by /i", "");
    let run = selvedge(&node, "image rm hub/web:1 -y").code(1);
    assert!(err(&run).contains("in use by /i"), "{}", err(&run));
    assert_eq!(node.asked(&rm).len(), 1);
}

#[test]
fn errors_of_the_node_become_exit_codes() {
    let table = [
        (404, "notFound", 3),
        (400, "invalid", 2),
        (422, "cannotPlace", 5),
        (422, "image", 1),
        (503, "noQuorum", 8),
        (503, "unreachable", 8),
        (401, "unauthorized", 7),
        (500, "internal", 1),
        (413, "tooLarge", 2),
        (504, "timeout", 4),
    ];
    for (status, code, exit) in table {
        let node = FakeNode::start();
        node.refuse(PUT, status, code, "it is so", "try this");
        let run = selvedge(&node, "deploy web --image web:1").code(exit);
        assert_eq!(
            err(&run),
            "error: it is so\n  par-1: because\nhint: try this\n",
            "{code}"
        );
    }
}

#[test]
fn a_conflict_by_flags_is_tried_again_and_then_exit_6() {
    let node = FakeNode::start();
    node.refuse(PUT, 409, "conflict", "changed meanwhile", "");
    selvedge(&node, "deploy web --image web:1 -q").code(6);
    assert_eq!(node.asked(PUT).len(), 3);
    let node = FakeNode::start();
    let file = node.file("web.toml", "name = 'web'\nimage = 'w'\n");
    node.refuse(PUT, 409, "conflict", "changed meanwhile", "");
    selvedge(&node, &format!("deploy -f {}", file.display())).code(6);
    assert_eq!(node.asked(PUT).len(), 1);
}

#[test]
fn usage_errors_are_exit_2_and_ask_nothing() {
    let node = FakeNode::start();
    let file = node.file("bad.toml", "name = \"web\"\nimgae = \"x\"\n");
    let run = selvedge(&node, &format!("deploy -f {}", file.display())).code(2);
    let text = err(&run);
    assert!(text.contains("bad.toml:2:1: unknown key `imgae`"), "{text}");
    assert!(text.contains("did you mean `image`?"), "{text}");
    for line in [
        "deploy web --imgae x",
        "deploy We_b --image x",
        "deploy --image x",
        "deploy web --image x --scale 5..2",
        "get instnaces",
        "delete node/par-1 -y",
        "frobnicate",
    ] {
        selvedge(&node, line).code(2);
    }
    assert!(node.asked(PUT).is_empty());
}

#[test]
fn nobody_there_is_exit_8_and_quick() {
    let began = Instant::now();
    let run = bare()
        .args(["--addr", "unix:/nonexistent/api.sock", "status"])
        .assert()
        .code(8);
    assert!(err(&run).starts_with("error: cannot reach the node at unix:/nonexistent/api.sock"));
    assert!(err(&run).contains("hint: "));
    bare()
        .args(["--addr", "127.0.0.1:1", "get", "nodes"])
        .assert()
        .code(8);
    assert!(began.elapsed() < Duration::from_secs(5));
}

#[test]
fn a_missing_service_suggests_the_near_one() {
    let node = FakeNode::start();
    node.json("GET /v1/services", &json!([view(1)]));
    let run = selvedge(&node, "describe wbe").code(3);
    assert!(
        err(&run).contains("hint: did you mean `web`?"),
        "{}",
        err(&run)
    );
    selvedge(&node, "get services nope").code(3);
    selvedge(&node, "logs wbe").code(3);
}

#[test]
fn reads_come_in_every_form() {
    let node = FakeNode::start();
    node.json("GET /v1/services", &json!([view(2)]));
    node.json(
        "GET /v1/instances",
        &json!([
            instance("web-00001-abc", "Ready", Value::Null),
            instance("web-00001-axy", "Starting", Value::Null),
        ]),
    );
    let table = out(&selvedge(&node, "get").success());
    assert!(table.starts_with("NAME   READY"), "{table}");
    assert_eq!(
        out(&selvedge(&node, "ls svc -o name").success()),
        "service/web\n"
    );
    let list: Value =
        serde_json::from_str(&out(&selvedge(&node, "-o json get instances"))).unwrap();
    assert_eq!(list[1]["id"], "web-00001-axy");
    let one = out(&selvedge(&node, "get instance/web-00001-ab -o json").success());
    assert_eq!(
        serde_json::from_str::<Value>(&one).unwrap()["state"],
        "Ready"
    );
    let yaml = out(&selvedge(&node, "get services web -o yaml").success());
    assert!(yaml.contains("url: \"http://web.edge.internal\""), "{yaml}");
    let run = selvedge(&node, "get instances web-00001-a").code(2);
    assert!(
        err(&run).contains("  web-00001-abc\n  web-00001-axy\n"),
        "{}",
        err(&run)
    );
    selvedge(&node, "get -A").success();
    let queries: Vec<_> = node
        .asked("GET /v1/services")
        .iter()
        .map(|a| a.query.clone())
        .collect();
    assert!(queries.contains(&"namespace=default".to_owned()) && queries.contains(&String::new()));
}

#[test]
fn delete_needs_a_yes() {
    let node = FakeNode::start();
    node.json(GET, &view(1))
        .json("DELETE /v1/services/default/web", &json!({}));
    node.json("GET /v1/instances", &json!([]));
    let run = selvedge(&node, "delete web").code(2);
    assert!(err(&run).contains("hint: add -y"), "{}", err(&run));
    assert!(node.asked("DELETE /v1/services/default/web").is_empty());
    selvedge(&node, "delete svc/web -y").success();
    assert_eq!(node.asked("DELETE /v1/services/default/web").len(), 1);
}

#[test]
fn scale_waits_for_the_minimum() {
    let node = FakeNode::start();
    node.json("POST /v1/services/default/web/scale", &view(0));
    node.json(GET, &view(0)).json(GET, &view(2));
    node.json(
        "GET /v1/instances",
        &json!([instance("web-00001-a", "Starting", Value::Null)]),
    );
    selvedge(&node, "scale web 2..20").success();
    let body = node.body("POST /v1/services/default/web/scale");
    assert_eq!(body, json!({"min": 2, "max": 20}));
    let run = selvedge(&node, "scale web 3 --timeout 300ms").code(4);
    assert!(
        err(&run).contains("2 of 3 instances of web are ready"),
        "{}",
        err(&run)
    );
}

#[test]
fn logs_are_filtered_and_named() {
    let node = FakeNode::start();
    let line = |text: &str| {
        json!({"time": 1_700_000_000_123_u64, "node": "par-1", "instance": "web-00001-a",
               "stream": "stdout", "line": text})
        .to_string()
    };
    node.json(GET, &view(1));
    node.json(
        "GET /v1/instances",
        &json!([instance("web-00001-a", "Ready", Value::Null)]),
    );
    node.answer(
        "GET /v1/logs",
        200,
        format!("{}\n\n{}", line("GET / 200"), line("POST /x 500")),
    );
    let text = out(&selvedge(&node, "logs web --tail 5 --since 10m").success());
    assert_eq!(text, "web-00001-a | GET / 200\nweb-00001-a | POST /x 500\n");
    let query = &node.asked("GET /v1/logs")[0].query;
    assert!(
        query.starts_with("namespace=default&service=web&tail=5&follow=false&since="),
        "{query}"
    );
    let text = out(&selvedge(&node, "logs instance/web-00001-a --grep POST -t").success());
    assert!(
        text.contains("2023-11-14T22:13:20.123Z stdout POST /x 500\n"),
        "{text}"
    );
    let query = &node.asked("GET /v1/logs")[1].query;
    assert!(query.ends_with("&grep=POST"), "{query}");
}

#[test]
fn images_are_pulled_and_streamed_in() {
    let node = FakeNode::start();
    let held =
        json!({"reference": "docker.io/library/web:1", "digest": "sha256:abc", "bytes": 2048});
    node.json("POST /v1/images/pull", &held);
    let text = out(&selvedge(&node, "image pull web:1").success());
    assert_eq!(text, "docker.io/library/web:1 sha256:abc 2Ki\n");
    assert_eq!(
        node.body("POST /v1/images/pull"),
        json!({"reference": "web:1"})
    );
    node.json("POST /v1/images/import", &json!([held]));
    let file = node.file("image.tar", &"x".repeat(700_000));
    selvedge(
        &node,
        &format!("image import {} --as reg:5000/web:1", file.display()),
    )
    .success();
    let asked = &node.asked("POST /v1/images/import")[0];
    assert_eq!(
        (asked.body.len(), asked.query.as_str()),
        (700_000, "reference=reg%3A5000%2Fweb%3A1")
    );
    selvedge(&node, "image import /nonexistent.tar").code(1);
}

#[test]
fn explain_finds_out_what_is_meant() {
    let node = FakeNode::start();
    node.json(GET, &view(1));
    node.json(
        "GET /v1/instances",
        &json!([instance("web-00001-a", "Ready", Value::Null)]),
    );
    let said =
        |subject: &str| json!({"subject": subject, "receipt": null, "bill": null, "why": ["So."]});
    node.json(
        "GET /v1/explain/service/default/web",
        &said("service default/web"),
    );
    node.json(
        "GET /v1/explain/instance/web-00001-a",
        &said("instance web-00001-a"),
    );
    node.json(
        "GET /v1/explain/request/01ARZ3NDEKTSV4RRFFQ69G5FAV",
        &said("request 01A"),
    );
    assert_eq!(
        out(&selvedge(&node, "explain web").success()),
        "service default/web\n  So.\n"
    );
    assert!(out(&selvedge(&node, "explain instance/web-0").success()).starts_with("instance web"));
    assert!(out(&selvedge(&node, "explain web-00001-a").success()).starts_with("instance web"));
    let request = selvedge(&node, "explain 01ARZ3NDEKTSV4RRFFQ69G5FAV").success();
    assert!(out(&request).starts_with("request 01A"));
    node.json(
        "GET /v1/explain/why-not/default/web/fra-1",
        &said("why not fra-1"),
    );
    let why_not = selvedge(&node, "why-not web fra-1").success();
    assert_eq!(out(&why_not), "why not fra-1\n  So.\n");
    selvedge(&node, "why-not web fra/1").code(2);
}

#[test]
fn tokens_nodes_and_versions() {
    let node = FakeNode::start();
    let line = "selvedge join 10.0.0.1:8422 --token sv1.x";
    node.json(
        "POST /v1/tokens",
        &json!({
            "token": "sv1.x", "address": "10.0.0.1:8422", "line": line, "expires": 0,
        }),
    );
    assert_eq!(
        out(&selvedge(&node, "token create --ttl 5m").success()),
        format!("{line}\n")
    );
    assert_eq!(node.body("POST /v1/tokens"), json!({"ttlSeconds": 300}));
    node.json("POST /v1/nodes/par-1/remove", &json!({}));
    selvedge(&node, "node rm par-1").code(2);
    selvedge(&node, "node rm par-1 -y").success();
    node.json(
        "GET /v1/version",
        &json!({"version": "9.9", "node": "par-1", "cluster": "c"}),
    );
    let text = out(&selvedge(&node, "version --token T0K").success());
    assert!(text.ends_with("node par-1 9.9 (cluster c)\n"), "{text}");
    let asked = node.asked("GET /v1/version");
    assert_eq!(asked[0].authorization.as_deref(), Some("Bearer T0K"));
    bare()
        .args(["--addr", "unix:/nonexistent", "version"])
        .assert()
        .success();
}

#[test]
fn contexts_name_the_node() {
    let node = FakeNode::start();
    node.json("GET /v1/services", &json!([]));
    let text = format!(
        "current = 'demo'\n[contexts.demo]\naddr = '{}'\n",
        node.addr()
    );
    let file = node.file("config.toml", &text);
    bare()
        .env("SELVEDGE_CONFIG", &file)
        .arg("get")
        .assert()
        .success();
    let run = bare()
        .env("SELVEDGE_CONFIG", &file)
        .args(["--context", "dmeo", "get"])
        .assert()
        .code(2);
    assert!(
        err(&run).contains("did you mean --context demo?"),
        "{}",
        err(&run)
    );
}

#[test]
fn completion_is_written_for_shells() {
    for shell in ["bash", "zsh", "fish"] {
        let text = out(&bare().args(["completion", shell]).assert().success());
        assert!(
            text.contains("selvedge") && text.contains("deploy"),
            "{shell}"
        );
    }
}

#[test]
fn joining_without_a_good_token_leaves_nothing() {
    let folder = std::env::temp_dir().join(format!("selvedge-join-{}", std::process::id()));
    let (data, config) = (folder.join("data"), folder.join("c.toml"));
    let join = |words: &[&str]| {
        let mut command = bare();
        command.args(["join", "127.0.0.1:9"]).args(words);
        command
            .arg("--data")
            .arg(&data)
            .arg("--config")
            .arg(&config)
            .assert()
    };
    join(&[]).code(2);
    join(&["--token", "sv1.short"]).code(2);
    assert!(!data.exists() && !config.exists());
}

#[test]
fn touching_an_instance_says_what_is_wrong_and_ends_as_agreed() {
    let node = FakeNode::start();
    node.json(
        "GET /v1/instances",
        &json!([
            instance("web-00001-a", "Ready", Value::Null),
            instance("web-00001-b", "Starting", Value::Null),
        ]),
    );
    let gone = "instance web-00001-a does not run any more: it is Stopped";
    node.refuse(
        "POST /v1/instances/web-00001-a/exec",
        409,
        "conflict",
        gone,
        "selvedge get instances",
    );
    // A service's ready instance, or the start of an instance's name; 125 as docker has it.
    for name in ["web", "web-00001-a"] {
        let text = err(&selvedge(&node, &format!("exec {name} -e A=b -- ls -l")).code(125));
        assert!(text.contains(gone), "{text}");
    }
    let body = node.body("POST /v1/instances/web-00001-a/exec");
    assert_eq!(body["args"], json!(["ls", "-l"]));
    assert_eq!(body["env"], json!([["A", "b"]]));
    assert_eq!(
        (&body["tty"], &body["stdin"]),
        (&Value::Null, &json!(false))
    );
    let text = err(&selvedge(&node, "exec web-00001 -- ls").code(125));
    assert!(text.contains("is the start of 2 instances"), "{text}");
    let text = err(&selvedge(&node, "exec wobble -- ls").code(125));
    assert!(text.contains("there is no instance `wobble`"), "{text}");
    let text = err(&selvedge(&node, "exec web -it -- ls").code(125));
    assert!(text.contains("stdin is no terminal"), "{text}");
    selvedge(&node, "exec web").code(2);

    for (line, want) in [
        ("cp web:/a web:/b", "both sides are in instances"),
        ("cp a b", "neither side is in an instance"),
        ("cp web:a b", "absolute path"),
        ("port-forward web 80:0", "no pair of ports"),
    ] {
        let text = err(&selvedge(&node, line).code(2));
        assert!(text.contains(want), "{line}: {text}");
    }
    let text = err(&selvedge(&node, "cp /nonexistent/file web:/tmp").code(1));
    assert!(text.contains("/nonexistent/file"), "{text}");
    // No switch of protocol: the node's answer says why.
    node.refuse(
        "POST /v1/instances/web-00001-a/copy",
        503,
        "unreachable",
        "too far",
        "",
    );
    let text = err(&selvedge(&node, "cp web:/a /tmp/never").code(8));
    assert!(text.contains("too far"), "{text}");
}

#[test]
fn certificates_go_in_and_are_listed_without_their_keys() {
    let node = FakeNode::start();
    let view = json!({
        "name": "web", "source": "own", "hosts": ["web.edge.internal"], "notBefore": 1,
        "notAfter": 9_000_000_000_000_u64, "secondsLeft": 8_640_000, "state": "valid",
        "error": null, "version": 7,
    });
    node.json("PUT /v1/certificates/web", &view);
    node.json("GET /v1/certificates", &json!([view]));
    let (chain, key) = (node.file("web.pem", "CHAIN"), node.file("web.key", "KEY"));
    let add = |name: &str| {
        let (chain, key) = (chain.display(), key.display());
        selvedge(
            &node,
            &format!("cert add {name} --cert {chain} --key {key}"),
        )
    };
    let added = out(&add("web").success());
    assert!(added.contains("100 days to go"), "{added}");
    let sent = node.body("PUT /v1/certificates/web");
    assert_eq!(
        (&sent["chain"], &sent["key"]),
        (&json!("CHAIN"), &json!("KEY"))
    );
    let listed = out(&selvedge(&node, "cert ls").success());
    for word in ["web", "own", "valid", "100d", "web.edge.internal"] {
        assert!(listed.contains(word), "no {word} in {listed}");
    }
    assert!(!listed.contains("KEY"));
    for bad in ["../services", "a/b", ".hidden"] {
        add(bad).code(2);
    }
    // Nobody is there to be asked.
    selvedge(&node, "cert rm web").code(2);
}

//! `up` and `join` as a machine's operator meets them. The daemon is a stand-in; the cluster that
//! is joined speaks the real protocol on loopback.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::support::FakeNode;
use assert_cmd::Command;
use assert_cmd::assert::Assert;
use async_trait::async_trait;
use netfabric::identity::{Authority, Identity, JoinToken, NodeKeys};
use netfabric::transport::join::{JoinHandler, JoinRefusal, JoinRequest, JoinResponse};
use netfabric::transport::{Admit, Mesh};
use scheduler::model::NodeId;
use scheduler::registry::State;
use serde_json::json;

/// A program that is being written cannot be run, and a fork in another test's thread keeps it open
/// for writing a moment longer: one machine at a time.
static TURN: Mutex<()> = Mutex::new(());

/// A machine: a folder with the two programs in it, gone with the test.
struct Machine {
    folder: PathBuf,
    api: FakeNode,
    _turn: MutexGuard<'static, ()>,
}

impl Machine {
    /// `daemon` is the shell script that stands in for `selvedged`.
    fn new(name: &str, daemon: &str) -> Self {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let folder = std::env::temp_dir().join(format!("selvedge-{name}-{}", std::process::id()));
        std::fs::create_dir_all(folder.join("data/run")).unwrap();
        let program = assert_cmd::cargo::cargo_bin("selvedge");
        std::fs::copy(program, folder.join("selvedge")).unwrap();
        let script = folder.join("selvedged");
        std::fs::write(&script, format!("#!/bin/sh\n{daemon}\n")).unwrap();
        std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
        let api = FakeNode::start_at(folder.join("data/run"));
        api.answer("GET /v1/healthz", 200, "ok");
        Self {
            folder,
            api,
            _turn: turn,
        }
    }

    fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    fn config(&self) -> PathBuf {
        self.folder.join("selvedge.toml")
    }

    fn run(&self, words: &[&str]) -> Assert {
        let mut command = Command::new(self.folder.join("selvedge"));
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("SELVEDGE_")) {
            command.env_remove(name);
        }
        command.args(words).timeout(Duration::from_secs(40));
        command
            .arg("--data")
            .arg(self.data())
            .arg("--config")
            .arg(self.config());
        command.args([
            "--name",
            "par-1",
            "--region",
            "par",
            "--advertise",
            "127.0.0.1:8422",
        ]);
        command.args(["--http", "off", "--dns", "off", "--api", "127.0.0.1:0"]);
        command.args(["--mesh-listen", "127.0.0.1:0"]).assert()
    }

    /// No file of a node is here.
    fn is_vacant(&self) -> bool {
        !self.config().exists()
            && !self.data().join("identity").exists()
            && !self.data().join("registry").exists()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn err(assert: &Assert) -> String {
    String::from_utf8_lossy(&assert.get_output().stderr).into_owned()
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata("/proc/self").is_ok_and(|me| me.uid() == 0)
}

const LINE: &str = "selvedge join 127.0.0.1:8422 --token sv1.x";

#[test]
fn up_founds_starts_and_prints_the_join_line() {
    if !is_root() {
        return;
    }
    let machine = Machine::new("up", "exec sleep 2");
    machine
        .api
        .refuse("POST /v1/tokens", 503, "noQuorum", "no leader yet", "");
    machine.api.json(
        "POST /v1/tokens",
        &json!({
            "token": "sv1.x", "address": "127.0.0.1:8422", "line": LINE, "expires": 0,
        }),
    );
    let run = machine.run(&["up"]).success();
    assert_eq!(
        String::from_utf8_lossy(&run.get_output().stdout),
        format!("{LINE}\n")
    );
    let identity = machine.data().join("identity");
    let me = Identity::load(&identity).unwrap();
    let authority = Authority::load(&identity).unwrap();
    assert_eq!(
        (me.node(), me.cluster_id()),
        (NodeId(1), authority.cluster_id())
    );
    assert!(machine.data().join("registry/found").exists());
    assert_eq!((mode(&machine.config()), mode(&identity)), (0o600, 0o700));
    let again = machine.run(&["up"]).code(6);
    assert!(
        err(&again).contains("this machine is node n1 of cluster"),
        "{}",
        err(&again)
    );
}

#[test]
fn a_daemon_that_ends_at_once_leaves_no_cluster() {
    if !is_root() {
        return;
    }
    let machine = Machine::new("ends", "echo 'cannot mount cgroup2' >&2; exit 3");
    machine.api.answer("GET /v1/healthz", 500, "never healthy");
    // The stand-in's API answers 200 first; only the next look sees that the daemon is gone.
    machine
        .api
        .refuse("POST /v1/tokens", 503, "noQuorum", "no leader yet", "");
    let run = machine.run(&["up"]).code(1);
    let said = err(&run);
    assert!(said.contains("selvedged ended"), "{said}");
    assert!(said.contains("| cannot mount cgroup2"), "{said}");
    assert!(machine.is_vacant());
}

#[test]
fn a_taken_port_is_told_before_anything_is_written() {
    if !is_root() {
        return;
    }
    let machine = Machine::new("port", "exit 0");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let http = format!("--http={}", taken.local_addr().unwrap());
    let mut command = Command::new(machine.folder.join("selvedge"));
    command.args(["up", &http, "--dns", "off", "--api", "127.0.0.1:0"]);
    command.args([
        "--mesh-listen",
        "127.0.0.1:0",
        "--name",
        "a",
        "--advertise",
        "127.0.0.1:1",
    ]);
    command
        .arg("--data")
        .arg(machine.data())
        .arg("--config")
        .arg(machine.config());
    let run = command.assert().code(6);
    assert!(
        err(&run).contains("meant for the front door, is taken"),
        "{}",
        err(&run)
    );
    assert!(err(&run).contains("--http :8080"), "{}", err(&run));
    assert!(machine.is_vacant());
}

/// A cluster's door that takes in whoever shows the token, or refuses as told.
struct Door {
    authority: Authority,
    token_hash: String,
    refusal: Option<JoinRefusal>,
}

#[async_trait]
impl JoinHandler for Door {
    async fn join(
        &self,
        _: SocketAddr,
        token_hash: String,
        request: JoinRequest,
    ) -> Result<JoinResponse, JoinRefusal> {
        if let Some(refusal) = &self.refusal {
            return Err(refusal.clone());
        }
        if token_hash != self.token_hash {
            return Err(JoinRefusal::TokenUnknown);
        }
        let node = NodeId(4);
        let invalid =
            |error: netfabric::identity::IdentityError| JoinRefusal::Invalid(error.to_string());
        Ok(JoinResponse {
            node,
            cluster_id: self.authority.cluster_id().to_owned(),
            certificate: self.authority.sign(&request.csr, node).map_err(invalid)?,
            ca: self.authority.ca_pem().to_owned(),
            ca_key: Some(self.authority.key_pem()),
            secrets_key: None,
            peers: Vec::new(),
            registry: serde_json::to_vec(&State::default()).unwrap_or_default(),
        })
    }
}

struct Everyone;

impl Admit for Everyone {
    fn admits(&self, _: NodeId) -> bool {
        true
    }
}

struct Cluster {
    _runtime: tokio::runtime::Runtime,
    address: String,
    token: JoinToken,
}

fn cluster(refusal: Option<JoinRefusal>) -> Cluster {
    let authority = Authority::create().unwrap();
    let token = authority.token().unwrap();
    let keys = NodeKeys::generate().unwrap();
    let certificate = authority.sign(&keys.csr().unwrap(), NodeId(1)).unwrap();
    let me = Identity::new(keys, &certificate, authority.ca_pem()).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let mesh = {
        let _inside = runtime.enter();
        Mesh::bind(
            "127.0.0.1:0".parse().unwrap(),
            Arc::new(me),
            Arc::new(Everyone),
        )
        .unwrap()
    };
    mesh.serve_join(Arc::new(Door {
        authority,
        token_hash: token.secret_hash(),
        refusal,
    }));
    Cluster {
        _runtime: runtime,
        address: mesh.local_addr().to_string(),
        token,
    }
}

#[test]
fn join_enrols_writes_and_waits_to_be_a_member() {
    if !is_root() {
        return;
    }
    let cluster = cluster(None);
    let machine = Machine::new("join", "exec sleep 2");
    let resources = json!({"cpuMillis": 1000, "memoryBytes": 1, "instances": 1});
    let status = |nodes| {
        json!({
            "cluster": {"id": "c"}, "services": 0, "instances": {}, "nodes": nodes,
            "node": {"id": 4, "name": "par-1", "region": "par", "zone": "par"},
            "registry": {"index": 3, "leader": 1, "voters": [1], "quorum": true, "role": "follower"},
        })
    };
    let me = json!({
        "id": 4, "name": "par-1", "region": "par", "zone": "par", "role": "voter", "alive": true,
        "serving": true, "cordoned": false, "rttMicros": 0, "mesh": "127.0.0.1:8422",
        "ingress": [], "capacity": resources, "free": resources, "registryIndex": 3,
        "version": "0.1.0", "instances": 0,
    });
    let mut other = me.clone();
    other["id"] = json!(1);
    machine.api.json("GET /v1/status", &status(json!([])));
    machine
        .api
        .json("GET /v1/status", &status(json!([other, me])));
    let token = cluster.token.reveal();
    let run = machine
        .run(&["join", &cluster.address, "--token", &token])
        .success();
    assert_eq!(
        String::from_utf8_lossy(&run.get_output().stdout),
        "node/par-1 joined\n"
    );
    let identity = machine.data().join("identity");
    assert_eq!(Identity::load(&identity).unwrap().node(), NodeId(4));
    assert!(Authority::is_in(&identity));
    let config = std::fs::read_to_string(machine.config()).unwrap();
    assert!(
        config.contains(&format!("seeds = [\"{}\"]", cluster.address)),
        "{config}"
    );
    let followed = std::fs::read_to_string(machine.data().join("registry/followed.json")).unwrap();
    let (checksum, state) = followed.split_once('\n').unwrap();
    assert_eq!(checksum, netfabric::identity::sha256_hex(state.as_bytes()));
    assert_eq!(
        serde_json::from_str::<State>(state).unwrap(),
        State::default()
    );
}

#[test]
fn refusals_of_the_cluster_are_exit_codes_and_leave_nothing() {
    if !is_root() {
        return;
    }
    let name = scheduler::model::Name::new("par-1").unwrap();
    for (refusal, code, word) in [
        (JoinRefusal::TokenUsed, 7, "used already"),
        (JoinRefusal::TokenExpired, 7, "expired"),
        (JoinRefusal::TokenUnknown, 7, "unknown"),
        (JoinRefusal::NameTaken(name), 6, "--name par-1-2"),
        (JoinRefusal::Invalid("no".to_owned()), 2, "no"),
    ] {
        let cluster = cluster(Some(refusal));
        let machine = Machine::new(&format!("refused-{code}-{}", word.len()), "exit 0");
        let token = cluster.token.reveal();
        let run = machine
            .run(&["join", &cluster.address, "--token", &token])
            .code(code);
        assert!(err(&run).contains(word), "{}", err(&run));
        assert!(machine.is_vacant(), "{word}");
    }
}

#[test]
fn a_foreign_cluster_and_an_unreachable_one() {
    if !is_root() {
        return;
    }
    let (ours, theirs) = (cluster(None), cluster(None));
    let machine = Machine::new("foreign", "exit 0");
    let token = ours.token.reveal();
    let run = machine
        .run(&["join", &theirs.address, "--token", &token])
        .code(7);
    assert!(
        err(&run).contains("not the one this token is for"),
        "{}",
        err(&run)
    );
    assert!(machine.is_vacant());
    let run = machine
        .run(&["join", "no-such-host.invalid:1", "--token", &token])
        .code(8);
    assert!(err(&run).contains("no-such-host.invalid"), "{}", err(&run));
    assert!(machine.is_vacant());
}

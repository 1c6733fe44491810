//! What a container's sandbox is and what it is given, by examples.

use scheduler::model::{ProbeAction, VolumeSource};

use super::tests::flags;
use super::*;
use crate::args::{Cli, Command};

const SANDBOX: &str = r#"
user = "www-data:adm"
groups = ["video", "7"]
hostname = "db"
init = true
stop_signal = "SIGQUIT"

[resources]
cpu = 1
cpu_request = "250m"
memory_request = "64Mi"
shm = "128Mi"

[io]
weight = 50
write = "10Mi"
read_ops = 100

[ulimits]
nofile = "1024:4096"
nproc = 64

[tmpfs]
"/cache" = "16Mi"

[sysctls]
"net.ipv4.tcp_syncookies" = 1

[hosts]
db = "10.0.0.1"

[dns]
servers = ["9.9.9.9"]
search = "svc.internal"
options = ["ndots:2"]

[health]
ready = { probe = "http:/ready:9090", timeout = "2s", period = "5s", failures = 4, headers = { x-mine = "1" } }
live = { exec = ["/bin/check", "a b"], delay = "3s" }
startup = "grpc:9000/web"
"#;

#[test]
fn all_of_a_sandbox_lowers() {
    let mut web = parse("web.toml", SANDBOX).unwrap();
    let spec = &web.spec;
    assert_eq!(spec.hostname.as_deref(), Some("db"));
    assert_eq!(spec.sysctls["net.ipv4.tcp_syncookies"], "1");
    assert_eq!(spec.host_aliases[0].names, ["db"]);
    assert_eq!(spec.dns.servers.len(), 1);
    assert_eq!(spec.dns.search, ["svc.internal"]);
    assert_eq!(spec.dns.options, ["ndots:2"]);
    let main = web.container();
    let security = &main.security;
    assert_eq!(security.run_as_user_name.as_deref(), Some("www-data"));
    assert_eq!(security.run_as_group_name.as_deref(), Some("adm"));
    assert_eq!(security.supplemental_groups, ["video", "7"]);
    assert!(main.init);
    assert_eq!(main.stop_signal.as_deref(), Some("SIGQUIT"));
    assert_eq!((main.cpu_millis, main.cpu_request_millis), (1000, 250));
    assert_eq!(
        (main.memory_request_bytes, main.shm_bytes),
        (64 << 20, 128 << 20)
    );
    let io = main.io;
    assert_eq!((io.weight, io.write_bps, io.read_iops), (50, 10 << 20, 100));
    let limits: Vec<_> = main.ulimits.iter().map(|l| (l.soft, l.hard)).collect();
    assert_eq!(limits, [(1024, 4096), (64, 64)]);
    assert_eq!(main.tmpfs[0].size_bytes, 16 << 20);
    let ready = main.readiness.as_ref().unwrap();
    assert_eq!((ready.timeout_seconds, ready.period_seconds), (2, 5));
    assert_eq!(ready.failure_threshold, 4);
    let asked = ProbeAction::Http {
        path: "/ready".into(),
        port: 9090,
        headers: [("x-mine".to_owned(), "1".to_owned())].into(),
    };
    assert_eq!(ready.action, asked);
    let live = main.liveness.as_ref().unwrap();
    assert_eq!(live.initial_delay_seconds, 3);
    let command = ["/bin/check", "a b"].map(str::to_owned).to_vec();
    assert_eq!(live.action, ProbeAction::Exec { command });
    let (port, service) = (9000, "web".to_owned());
    let started = &main.startup.as_ref().unwrap().action;
    assert_eq!(*started, ProbeAction::Grpc { port, service });
}

#[test]
fn flags_of_the_sandbox_win_by_name() {
    let base = parse("web.toml", SANDBOX).unwrap();
    let args = flags(
        "web --user 7 --group-add 9 --ulimit nproc=32 --tmpfs /cache:1Mi --tmpfs /run \
         --sysctl net.ipv4.tcp_fin_timeout=9 --add-host db:10.0.0.2 --dns 1.1.1.1 --dns-search x \
         --init=false --stop-signal INT --io weight=60 --hostname web --cpu-request 0.5 \
         --memory-request 32Mi --shm-size 1Mi --read-only --grace 30s --liveness tcp:81 --startup none",
    );
    let mut web = override_with(base.clone(), &args, &[]).unwrap();
    assert_eq!(web.spec.termination_grace_seconds, 30);
    assert_eq!(web.spec.sysctls.len(), 2);
    assert_eq!(web.spec.host_aliases.len(), 1);
    assert_eq!(web.spec.host_aliases[0].ip.to_string(), "10.0.0.2");
    assert_eq!(web.spec.dns.search, ["x"]);
    assert_eq!(web.spec.dns.options, ["ndots:2"]);
    let main = web.container();
    assert_eq!(main.security.run_as_user, Some(7));
    assert_eq!(main.security.run_as_group_name, None);
    assert_eq!(main.security.supplemental_groups, ["9"]);
    assert!(main.security.read_only_root_filesystem && !main.init);
    let limits: Vec<_> = main.ulimits.iter().map(|l| (&*l.name, l.hard)).collect();
    assert_eq!(limits, [("nofile", 4096), ("nproc", 32)]);
    let folders: Vec<_> = main
        .tmpfs
        .iter()
        .map(|t| (&*t.path, t.size_bytes))
        .collect();
    assert_eq!(folders, [("/cache", 1 << 20), ("/run", 0)]);
    assert_eq!((main.io.weight, main.io.read_iops), (60, 100));
    assert_eq!(
        main.liveness.as_ref().map(|p| &p.action),
        Some(&ProbeAction::Tcp { port: 81 })
    );
    assert_eq!(main.startup, None);
    assert!(main.readiness.is_some());
    assert_eq!(
        override_with(base.clone(), &flags("web"), &[]).unwrap(),
        base
    );
}

const GIVEN: &str = r#"
name = "web"
image = "web:1"

[secrets]
DB_URL = "db/url"

[config]
LEVEL = "app:level"

[[mount]]
emptydir = "cache"
at = "/cache"
size = "64Mi"
memory = true

[[mount]]
config = "app"
at = "/etc/app"

[[mount]]
config = "app"
at = "/etc/one"
path = "one"

[[mount]]
secret = "db"
at = "/run/db"
optional = true

[[mount]]
volume = "data"
at = "/data"
read_only = true

[[mount]]
host = "/srv/share"
at = "/share"
"#;

#[test]
fn what_a_service_is_given_lowers() {
    let web = parse("web.toml", GIVEN).unwrap();
    let main = web.spec.main().unwrap();
    let env: Vec<_> = main
        .env
        .iter()
        .map(|e| (e.name.as_str(), e.secret.as_deref(), e.config.as_deref()))
        .collect();
    let want = [
        ("DB_URL", Some("db:url"), None),
        ("LEVEL", None, Some("app:level")),
    ];
    assert_eq!(env, want);
    let volumes: Vec<_> = web.spec.volumes.iter().map(|v| v.name.as_str()).collect();
    let names = [
        "cache",
        "config-app",
        "secret-db",
        "volume-data",
        "host-srv-share",
    ];
    assert_eq!(volumes, names);
    assert_eq!(
        web.spec.volumes[0].source,
        VolumeSource::EmptyDir {
            memory: true,
            size_bytes: 64 << 20
        }
    );
    let mounts: Vec<_> = main
        .volume_mounts
        .iter()
        .map(|m| (m.name.as_str(), m.mount_path.as_str(), m.read_only))
        .collect();
    assert_eq!(mounts[2], ("config-app", "/etc/one", false));
    assert_eq!(mounts[4], ("volume-data", "/data", true));
    assert_eq!(main.volume_mounts[2].sub_path.as_deref(), Some("one"));
}

#[test]
fn a_mount_that_is_none_says_where() {
    for (text, said) in [
        ("[[mount]]\nat = \"/x\"", "exactly one of"),
        (
            "[[mount]]\nconfig = \"a\"\nsecret = \"b\"\nat = \"/x\"",
            "exactly one of",
        ),
        ("[[mount]]\nconfig = \"a\"", "no `at`"),
        (
            "[[mount]]\nconfig = \"a\"\nat = \"/x\"\nsize = \"1Mi\"",
            "only an emptydir",
        ),
        (
            "[[mount]]\nvolume = \"a\"\nat = \"/x\"\noptional = true",
            "optional",
        ),
        ("[[mount]]\nfoo = \"a\"\nat = \"/x\"", "unknown key `foo`"),
        ("mount = \"x\"", "a list of tables"),
        ("[secrets]\nA = \"db\"", "not NAME/KEY"),
        ("[env]\nA = \"1\"\n[secrets]\nA = \"db/a\"", "given twice"),
    ] {
        let error = parse("web.toml", text).unwrap_err();
        assert!(error.message.contains(said), "{text}: {}", error.message);
        assert!(error.at.is_some(), "{text}");
    }
}

#[test]
fn mount_flags_add_replace_and_take_away() {
    let with = |base: Manifest, words: &[&str]| {
        let words = ["selvedge", "deploy", "web"].iter().chain(words);
        let cli = <Cli as clap::Parser>::try_parse_from(words).unwrap();
        let Command::Deploy(flags) = cli.command else {
            panic!("another verb");
        };
        override_with(base, &flags, &[]).unwrap()
    };
    let base = parse("web.toml", GIVEN).unwrap();
    let changed = with(
        base,
        &[
            "--mount",
            "config/other:/etc/app",
            "--mount",
            "/cache-",
            "--secret",
            "T=db:t",
        ],
    );
    let names: Vec<_> = changed
        .spec
        .volumes
        .iter()
        .map(|v| v.name.as_str())
        .collect();
    assert!(!names.contains(&"cache"), "{names:?}");
    assert!(names.contains(&"config-app"), "still mounted at /etc/one");
    assert!(names.contains(&"config-other"));
    let main = changed.spec.main().unwrap();
    let token = main.env.iter().find(|e| e.name == "T").unwrap();
    assert_eq!(token.secret.as_deref(), Some("db:t"));
}

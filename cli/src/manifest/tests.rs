//! The manifest, by examples: what it lowers to and how it complains.

use scheduler::model::{
    DOMAINS, Fit, Listen, ListenProtocol, Metric, ProbeAction, Protocol, Spread,
};

use super::*;
use crate::args::{Cli, Command, DeployArgs};

const WHOLE: &str = r#"
name = "web"
image = "ghcr.io/acme/web:1.4"
port = "h2c:9000"
scale = "2..20"
concurrency = 50
target = 40
window = "90s"
timeout = "30s"
grace = "5s"
command = ["/bin/web", "--fast"]
args = "serve"
workdir = "/srv"
user = "1000:1000"
pull = "always"
read_only = true
capabilities = ["NET_BIND_SERVICE"]

[env]
LOG = "info"
WORKERS = 4
RATIO = 0.5
DEBUG = true

[resources]
cpu = 0.5
memory = "256Mi"
pids = 64

[health]
ready = "http:/healthz"

[place]
regions = ["eu-*"]
spread = "zone"
require = { disk = "nvme" }

[traffic]
latest = 90
"web-00007" = { percent = 10, tag = "old" }

[labels]
team = "edge"
"#;

#[test]
fn a_whole_manifest_lowers() {
    let mut web = parse("web.toml", WHOLE).unwrap();
    assert_eq!(web.name.as_ref().unwrap().as_str(), "web");
    assert_eq!(
        (web.scale.min, web.scale.max, web.scale.target),
        (2, 20, 40)
    );
    assert_eq!(web.scale.window_seconds, 90);
    assert_eq!(web.spec.container_concurrency, 50);
    assert_eq!(
        (web.spec.timeout_seconds, web.spec.termination_grace_seconds),
        (30, 5)
    );
    assert_eq!(web.spec.port().container_port, 9000);
    assert_eq!(web.spec.port().protocol, Protocol::H2c);
    assert_eq!(web.spec.place.regions, ["eu-*"]);
    assert_eq!(web.spec.place.spread, Spread::Zone);
    assert_eq!(web.spec.place.require["disk"], "nvme");
    assert_eq!(web.traffic.len(), 2);
    assert_eq!(web.traffic.iter().map(|t| t.percent).sum::<u32>(), 100);
    assert_eq!(web.labels["team"], "edge");
    let main = web.container();
    assert_eq!(main.name, "user-container");
    assert_eq!(main.command, ["/bin/web", "--fast"]);
    assert_eq!(main.args, ["serve"]);
    assert_eq!(
        (main.cpu_millis, main.memory_bytes, main.pids),
        (500, 256 << 20, 64)
    );
    assert_eq!(main.image_pull_policy, "Always");
    assert_eq!(main.security.run_as_user, Some(1000));
    assert!(main.security.read_only_root_filesystem);
    let env: Vec<_> = main
        .env
        .iter()
        .map(|v| format!("{}={}", v.name, v.value))
        .collect();
    assert_eq!(
        env,
        ["DEBUG=true", "LOG=info", "RATIO=0.5", "WORKERS=4"].map(String::from)
    );
    let action = ProbeAction::Http {
        path: "/healthz".into(),
        port: 0,
        headers: BTreeMap::new(),
    };
    assert_eq!(main.readiness.as_ref().map(|p| &p.action), Some(&action));
}

#[test]
fn annotations_of_our_own_are_the_revisions_too() {
    let text = "[annotations]\n\"selvedge.dev/freeze\" = \"never\"\nteam = \"edge\"\n";
    let web = parse("f", text).unwrap();
    assert_eq!(web.annotations.len(), 2);
    assert_eq!(web.spec.annotations.len(), 1);
    assert_eq!(web.spec.annotations["selvedge.dev/freeze"], "never");
}

#[test]
fn the_front_doors_tls_is_the_services_and_makes_no_revision() {
    let web = parse(
        "f",
        "[tls]\ncertificate = \"acme\"\nplain_http = \"allow\"\n",
    )
    .unwrap();
    assert_eq!(web.annotations["selvedge.dev/certificate"], "acme");
    assert_eq!(web.annotations["selvedge.dev/plain-http"], "allow");
    assert!(web.spec.annotations.is_empty());
    let wrong = parse("f", "[tls]\ncertificate = \"letsencrypt\"\n").unwrap_err();
    assert!(wrong.to_string().contains("`own` or `acme`"), "{wrong}");
    assert!(parse("f", "[tls]\nredirect = true\n").is_err());
}

#[test]
fn a_rate_is_the_services_and_makes_no_revision() {
    let rate = |text| parse("f", text).map(|web| web.annotations["selvedge.dev/rate"].clone());
    assert_eq!(rate("rate = \"100/s\"\n").unwrap(), "100/s");
    assert_eq!(rate("rate = \"30/m  burst 5\"\n").unwrap(), "30/m burst 5");
    let annotated = parse("f", "[annotations]\n\"selvedge.dev/rate\" = \"5/s\"\n").unwrap();
    assert!(annotated.spec.annotations.is_empty());
    let wrong = rate("rate = \"100\"\n").unwrap_err();
    assert!(wrong.to_string().contains("write 100/s"), "{wrong}");
}

#[test]
fn domains_are_the_services_and_flags_change_them_one_by_one() {
    let text = "image = \"x\"\ndomains = [\"WWW.a.test\", \"a.test/api/\"]\n";
    let web = parse("f", text).unwrap();
    assert_eq!(web.annotations[DOMAINS], "www.a.test,a.test/api");
    assert!(web.spec.annotations.is_empty());
    let changed = |words: &[&str]| {
        let flags = DeployArgs {
            domains: words.iter().map(|w| w.parse().unwrap()).collect(),
            ..DeployArgs::default()
        };
        let changed = override_with(web.clone(), &flags, &[]).unwrap();
        changed.annotations.get(DOMAINS).cloned()
    };
    let all = "www.a.test,a.test/api";
    assert_eq!(changed(&[]).as_deref(), Some(all));
    assert_eq!(
        changed(&["*.a.test", "www.a.test-"]).as_deref(),
        Some("a.test/api,*.a.test")
    );
    assert_eq!(changed(&["www.a.test-", "a.test/api-"]), None);
    let wrong = parse("f", "domains = [\"a.test:80\"]\n").unwrap_err();
    assert!(
        wrong.to_string().contains("a port is not part of it"),
        "{wrong}"
    );
}

#[test]
fn the_proxy_protocol_is_the_programs_and_so_its_revisions() {
    let web = parse("f", "proxy_protocol = true\n").unwrap();
    assert!(web.spec.proxy_protocol());
    assert_eq!(web.annotations, web.spec.annotations);
    assert!(
        !parse("f", "proxy_protocol = false\n")
            .unwrap()
            .spec
            .proxy_protocol()
    );
    assert!(parse("f", "proxy_protocol = \"v2\"\n").is_err());
}

#[test]
fn how_a_split_keeps_its_clients_is_the_services_and_makes_no_revision() {
    let table = [
        ("sticky = true", "on"),
        ("sticky = false", "off"),
        ("sticky = \"8h\"", "8h"),
        ("sticky = \"on\"\nlatest = 90\n\"web-00001\" = 10", "on"),
    ];
    for (text, want) in table {
        let web = parse("f", &format!("[traffic]\n{text}\n")).unwrap();
        assert_eq!(web.annotations["selvedge.dev/sticky"], want, "{text}");
        assert!(web.spec.annotations.is_empty());
        let shares = if text.contains("latest") { 2 } else { 0 };
        assert_eq!(web.traffic.len(), shares, "{text}");
    }
    for wrong in ["sticky = \"a day\"", "sticky = \"800h\"", "sticky = 3"] {
        let text = format!("[traffic]\n{wrong}\n");
        let error = parse("f", &text).unwrap_err().to_string();
        assert!(error.contains("write `on`, `off` or 1s to 720h"), "{error}");
    }
    let plain = parse("f", "[traffic]\nlatest = 100\n").unwrap();
    assert!(plain.annotations.is_empty());
    let slow = parse("f", "[traffic]\nslow_start = \"30s\"\n").unwrap();
    assert_eq!(slow.annotations["selvedge.dev/slow-start"], "30s");
    assert!(slow.spec.annotations.is_empty() && slow.traffic.is_empty());
    let error = parse("f", "[traffic]\nslow_start = \"1h\"\n").unwrap_err();
    assert!(
        error.to_string().contains("write `off` or 1s to 15m"),
        "{error}"
    );
}

#[test]
fn a_small_manifest_takes_the_defaults() {
    let web = parse("f", "image = 'web'\n").unwrap();
    let expected = {
        let mut manifest = Manifest::default();
        manifest.container().image = "web".into();
        manifest
    };
    assert_eq!(web, expected);
    assert_eq!(web.spec.port().container_port, 8080);
}

#[test]
fn scale_in_all_its_forms() {
    for (text, min, max) in [
        ("scale = 3", 3, 3),
        ("scale = '0..5'", 0, 5),
        ("scale = '1..'", 1, 0),
        ("scale = { min = 1, max = 4 }", 1, 4),
        ("[scale]\nmin = 2\nwindow = '6s'", 2, 0),
    ] {
        let scale = parse("f", text).unwrap().scale;
        assert_eq!((scale.min, scale.max), (min, max), "{text}");
    }
}

#[test]
fn errors_show_their_place() {
    let wrong = [
        "name = \"web\"\nimgae = \"x\"\n",
        "name = \"We_b\"\n",
        "port = 70000\n",
        "port = \"quic:1\"\n",
        "[resources]\nmemory = \"12 bananas\"\n",
        "[resources]\n\tcpus = 1\n",
        "scale = \"9..2\"\n",
        "scale = { min = 9, max = 2 }\n",
        "[scale]\nmetric = \"qps\"\n",
        "[scale]\nmetric = \"cpu\"\ntarget = 101\n",
        "timeout = \"1500ms\"\n",
        "concurrency = -1\n",
        "concurrency = \"many\"\n",
        "command = [\"a\", 1]\n",
        "[health]\nready = \"exec\"\n",
        "[health]\nlive = { exec = \"true\", probe = \"tcp\" }\n",
        "[health]\nready = { probe = \"tcp\", headers = { a = \"b\" } }\n",
        "user = \"a b\"\n",
        "[ulimits]\nnofile = \"many\"\n",
        "[io]\nspeed = 9\n",
        "[hosts]\ndb = \"nowhere\"\n",
        "[dns]\nservers = [\"x\"]\n",
        "[env]\nA = [1]\n",
        "env = 3\n",
        "[traffic]\nlatest = 60\n",
        "[traffic]\n\"Web\" = 100\n",
        "name = \"web\n",
        "name = \"a\"\nname = \"b\"\n",
        "volumes = []\n",
        "# é ü\nname = \"wéb\"\n",
        "",
    ];
    let mut all = String::new();
    for text in wrong {
        match parse("web.toml", text) {
            Ok(_) => all.push_str("(fine)\n\n"),
            Err(error) => {
                all.push_str(&error.to_string());
                all.push_str("\n\n");
            }
        }
    }
    insta::assert_snapshot!(all);
}

#[test]
fn a_manifest_too_large_is_not_parsed() {
    let text = format!("name = \"{}\"", "a".repeat(MAX_BYTES));
    let error = parse("f", &text).unwrap_err().to_string();
    assert!(error.contains("more than 1048576"), "{error}");
}

pub(super) fn flags(line: &str) -> DeployArgs {
    use clap::Parser;
    let words = ["selvedge", "deploy"]
        .into_iter()
        .chain(line.split_whitespace());
    match Cli::try_parse_from(words).unwrap().command {
        Command::Deploy(args) => *args,
        other => panic!("{other:?}"),
    }
}

#[test]
fn flags_win_over_the_manifest_and_leave_the_rest() {
    let base = parse("web.toml", WHOLE).unwrap();
    let args = flags(
        "web --image new:2 --scale 0..3 --port 80 -e LOG=debug -e WORKERS- -e X=1 --memory 1Gi \
         --timeout 10s --region us --spread region --readiness tcp --user 7 --pull missing",
    );
    let mut web = override_with(base.clone(), &args, &[]).unwrap();
    assert_eq!((web.scale.min, web.scale.max, web.scale.target), (0, 3, 40));
    assert_eq!(web.spec.timeout_seconds, 10);
    assert_eq!(web.spec.place.regions, ["us"]);
    assert_eq!(web.spec.place.spread, Spread::Region);
    assert_eq!(web.spec.place.require["disk"], "nvme");
    let main = web.container();
    assert_eq!(main.image, "new:2");
    assert_eq!((main.cpu_millis, main.memory_bytes), (500, 1 << 30));
    assert_eq!(main.security.run_as_user, Some(7));
    assert_eq!(main.image_pull_policy, "IfNotPresent");
    let env: Vec<_> = main
        .env
        .iter()
        .map(|v| format!("{}={}", v.name, v.value))
        .collect();
    assert_eq!(
        env,
        ["DEBUG=true", "LOG=debug", "RATIO=0.5", "X=1"].map(String::from)
    );
    assert_eq!(
        override_with(base.clone(), &flags("web"), &[]).unwrap(),
        base
    );
}

#[test]
fn the_aliases_of_kn_and_gcloud_are_taken() {
    let args = flags(
        "web --min-instances 1 --max-instances 4 --set-env-vars A=1,B=2 --concurrency-limit 9",
    );
    let mut web = override_with(Manifest::default(), &args, &[]).unwrap();
    assert_eq!((web.scale.min, web.scale.max), (1, 4));
    assert_eq!(web.spec.container_concurrency, 9);
    assert_eq!(web.container().env.len(), 2);
    let kn = flags("web --scale-min 1 --scale-max 4 --concurrency-target 3");
    assert_eq!(
        override_with(Manifest::default(), &kn, &[])
            .unwrap()
            .scale
            .target,
        3
    );
}

#[test]
fn env_files_are_read_before_flags() {
    let file = "# a comment\n\nA=1\nexport B=\"two words\"\nC='x'\n".to_owned();
    let args = flags("web -e A=9");
    let mut web = override_with(Manifest::default(), &args, &[("env".into(), file)]).unwrap();
    let env: Vec<_> = web
        .container()
        .env
        .iter()
        .map(|v| format!("{}={}", v.name, v.value))
        .collect();
    assert_eq!(env, ["A=9", "B=two words", "C=x"].map(String::from));
    let wrong = override_with(
        Manifest::default(),
        &args,
        &[("env".into(), "A=1\nnope\n".into())],
    );
    assert!(wrong.unwrap_err().starts_with("env:2:"));
}

proptest::proptest! {
    /// Whatever stands in a manifest, reading it ends in a manifest or in an error that prints.
    #[test]
    fn no_text_panics(text in "\\PC{0,200}|[a-z]{1,8} ?= ?[\"'0-9a-z.\\[\\]{}\n=]{0,40}") {
        if let Err(error) = parse("f", &text) {
            let _ = error.to_string();
        }
    }
}

#[test]
fn scale_is_a_table_of_all_of_it() {
    let text = r#"
image = "a"
[scale]
min = 1
max = 9
metric = "memory"
target = 80
initial = 2
activation = 3
down_delay = "2m"
[[scale.schedule]]
cron = "30 7 * * mon-fri"
for = "10h"
min = 3
utc_offset = "-05:30"
"#;
    let scale = parse("web.toml", text).unwrap().scale;
    let [schedule] = scale.schedules.as_slice() else {
        panic!("{:?}", scale.schedules);
    };
    assert_eq!((schedule.for_seconds, schedule.min), (36_000, 3));
    assert_eq!(schedule.utc_offset_minutes, -330);
    assert_eq!((scale.min, scale.max, scale.initial), (1, 9, 2));
    assert_eq!((scale.activation, scale.down_delay_seconds), (3, 120));
    assert_eq!((scale.metric, scale.target), (Metric::Memory, 80));
}

#[test]
fn ports_and_callers_lower() {
    let text = r#"
name = "db"
image = "db:1"
port = 5432
[network]
allow = ["10.0.0.0/8"]
callers = ["shop/web", "bank/*"]
[[listen]]
port = 5432
[[listen]]
port = 443
protocol = "tls"
sni = ["db.example.com"]
to = 8443
idle = "10m"
[[listen]]
port = 53
protocol = "udp"
private = true
[[listen]]
port = 7000
proxy_protocol = true
"#;
    let spec = parse("db.toml", text).unwrap().spec;
    let callers: Vec<String> = spec.callers.iter().map(ToString::to_string).collect();
    assert_eq!(callers, ["shop/web", "bank/*"]);
    assert_eq!(spec.egress.len(), 1);
    let listen = |port, protocol| Listen {
        port,
        protocol,
        ..Listen::default()
    };
    let want = [
        listen(5432, ListenProtocol::Tcp),
        Listen {
            to: 8443,
            sni: vec!["db.example.com".into()],
            idle_seconds: 600,
            ..listen(443, ListenProtocol::Tls)
        },
        Listen {
            private: true,
            ..listen(53, ListenProtocol::Udp)
        },
        Listen {
            proxy_protocol: true,
            ..listen(7000, ListenProtocol::Tcp)
        },
    ];
    assert_eq!(spec.listen, want);
    for (bad, says) in [
        ("[[listen]]\nprotocol = \"tcp\"", "`port` is missing"),
        (
            "[[listen]]\nport = 70000",
            "`70000` is no port from 1 to 65535",
        ),
        (
            "[[listen]]\nport = 1\nprotocol = \"sctp\"",
            "`sctp` is no protocol",
        ),
        (
            "[[listen]]\nport = 1\nprotcol = \"tcp\"",
            "unknown key `protcol`",
        ),
        ("[network]\ncallers = [\"web\"]", "`web` names no services"),
    ] {
        let error = parse("db.toml", bad).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
}

#[test]
fn what_a_service_would_rather_have_of_its_nodes() {
    let text = r#"
image = "a"
[place]
fit = "pack"
energy = 40
priority = -7
[[place.prefer]]
label = "disk"
value = "nvme"
weight = -20
"#;
    let place = parse("web.toml", text).unwrap().spec.place;
    assert_eq!((place.fit, place.energy), (Fit::Pack, 40));
    assert_eq!(place.priority, -7);
    assert_eq!(place.prefer[0].weight, -20);
    let wrong = text.replace("\"pack\"", "\"tight\"");
    let error = parse("web.toml", &wrong).unwrap_err().to_string();
    assert!(error.contains("neither `spread` nor `pack`"), "{error}");
}

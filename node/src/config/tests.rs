use super::*;

const SMALL: &str = "[node]\nname=\"par-1\"\nregion=\"par\"\nzone=\"par-a\"\n";

fn parse(text: &str) -> Result<Config, String> {
    toml::from_str(text).map_err(|e| e.to_string())
}

#[test]
fn a_small_file_takes_the_defaults() {
    let config = parse(SMALL).unwrap();
    assert_eq!(config.ingress.http, Listen::port(80));
    assert_eq!(config.ingress.https, Listen::port(443));
    assert_eq!(config.dns.ttl, Span(Duration::from_secs(5)));
    assert_eq!(config.capacity.cpu, Auto::Auto);
    assert_eq!(
        config.observe.metrics.0,
        Some(([127, 0, 0, 1], 8421).into())
    );
}

#[test]
fn values_carry_units() {
    let text = format!(
        "{SMALL}[capacity]\ncpu=\"1.5\"\nmemory=\"2Gi\"\n[ingress]\nhttp=\"127.0.0.1:8080\"\nactivation_timeout=\"5s\"\n[dns]\nlisten=\"off\"\n"
    );
    let config = parse(&text).unwrap();
    assert_eq!(config.capacity.cpu, Auto::Set(Cpu(1500)));
    assert_eq!(config.capacity.memory, Auto::Set(Bytes(2 << 30)));
    assert_eq!(config.ingress.http.0, Some(([127, 0, 0, 1], 8080).into()));
    assert_eq!(config.dns.listen, Listen(None));
}

#[test]
fn clients_have_a_rate_where_it_is_said() {
    let rate =
        |text: &str| parse(&format!("{SMALL}[ingress]\n{text}\n")).map(|c| c.ingress.client_rate);
    let want = "20/s burst 100".parse().unwrap();
    assert_eq!(
        rate("client_rate = \"20/s burst 100\""),
        Ok(ClientRate(Some(want)))
    );
    for off in ["", "client_rate = \"off\""] {
        assert_eq!(rate(off), Ok(ClientRate(None)));
    }
    assert!(
        rate("client_rate = 20")
            .unwrap_err()
            .contains("write 100/s")
    );
}

#[test]
fn certificates_are_ordered_where_an_authority_is_named() {
    assert!(parse(SMALL).unwrap().acme.is_none());
    let text = format!(
        "{SMALL}[acme]\ndirectory=\"https://ca.test/dir\"\nterms_agreed=true\nchallenges=[\"dns-01\"]\n"
    );
    let acme = parse(&text).unwrap().acme.unwrap();
    assert_eq!(acme.challenges, [ChallengeKind::Dns]);
    assert_eq!(acme.orders_per_hour, 20);
    for bad in ["", "directory=\"x\"\nchallenges=[\"http-02\"]"] {
        assert!(parse(&format!("{SMALL}[acme]\n{bad}\n")).is_err(), "{bad}");
    }
}

#[test]
fn the_marks_of_images_keep_their_order() {
    let marks = |values: &str| {
        let text = format!("{SMALL}[runtime]\nimage_gc = {{{values}}}\n");
        parse(&text).unwrap().runtime.image_gc.marks()
    };
    assert_eq!(marks(""), Ok(Marks::default()));
    let own = marks("high=60, low=50, limit=\"20Gi\"").unwrap();
    assert_eq!((own.high, own.low, own.limit), (60, 50, Some(20 << 30)));
    for bad in ["low=85", "low=0", "high=101", "high=60"] {
        assert!(marks(bad).is_err(), "{bad}");
    }
}

#[test]
fn a_node_has_no_more_instances_than_its_bridge_has_ports() {
    let load = |most: u32| {
        let file = tempfile::NamedTempFile::new().unwrap();
        let text = format!("{SMALL}[capacity]\nmax_instances = {most}\n");
        std::fs::write(file.path(), text).unwrap();
        Config::load(file.path()).map_err(|e| e.to_string())
    };
    assert_eq!(load(1_000).unwrap().capacity.max_instances, 1_000);
    let error = load(1_001).unwrap_err();
    assert!(error.contains("[capacity] max_instances"), "{error}");
}

#[test]
fn http3_is_spoken_where_https_is() {
    let load = |lines: &str| {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), format!("{SMALL}[ingress]\n{lines}\n")).unwrap();
        let loaded = Config::load(file.path()).map_err(|e| e.to_string());
        loaded.map(|config| config.ingress.http3)
    };
    assert_eq!(load(""), Ok(false));
    assert_eq!(load("http3 = true"), Ok(true));
    assert_eq!(load("https = \"off\""), Ok(false));
    let table = [
        ("http3 = true\nhttps = \"off\"", "needs `https`"),
        (
            "http3 = true\nproxy_protocol = true",
            "does not go with `proxy_protocol`",
        ),
    ];
    for (lines, why) in table {
        let error = load(lines).unwrap_err();
        assert!(
            error.contains("[ingress] http3") && error.contains(why),
            "{error}"
        );
    }
}

#[test]
fn rules_for_signatures_name_their_keys() {
    let text = |rule: &str| format!("{SMALL}[[images.signatures]]\n{rule}\n");
    let config = parse(&text("namespaces=[\"prod\"]\nkeys=[\"/k\"]")).unwrap();
    let rule = config.images.signatures[0].rule();
    assert_eq!(
        (rule.namespaces, rule.images),
        (vec!["prod".to_owned()], vec![])
    );
    for bad in [
        "",
        "keys=[]\nnamespaces=[\"No!\"]",
        "keys=[]\nimage=[\"r\"]",
    ] {
        assert!(parse(&text(bad)).is_err(), "{bad}");
    }
}

#[test]
fn an_unknown_key_is_refused_with_its_line() {
    let error = parse(&format!("{SMALL}[ingress]\nhtpp=\":80\"\n")).unwrap_err();
    assert!(
        error.contains("line 6") && error.contains("htpp"),
        "{error}"
    );
}

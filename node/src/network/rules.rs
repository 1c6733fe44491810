//! The firewall of a node's containers, as nftables reads it: nothing in but what the node itself
//! began, nothing out to private networks, the node or each other but by the doors there for it, and
//! no forged sender.
//!
//! Plain `nft` scripts: they are what an operator sees in `nft list ruleset`, and one script is one
//! atomic change. Two tables: `bridge` looks at the frames of each container's own port (there a
//! forged sender shows), `ip` at what is routed. No IPv6 passes the first, so none is needed in
//! the second, and a kernel without IPv6 does.

use std::fmt::Write as _;
use std::process::Stdio;
use std::time::Duration;

use scheduler::model::Egress;
use scheduler::registry::SERVICE_BLOCK;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use super::{Inward, NetworkConfig, NetworkError, Slot};

/// Where containers may not go: this host, private and shared networks, link-local (the metadata
/// service), multicast and what is reserved.
const DENIED: [&str; 12] = [
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.0.2.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "224.0.0.0/4",
    "240.0.0.0/4",
];

/// A change of rules takes milliseconds.
const DEADLINE: Duration = Duration::from_secs(10);

/// One port's line in the set of rightful senders.
fn sender(slot: &Slot) -> String {
    format!(
        "\"{}\" . {} . {}",
        slot.port,
        mac_text(slot.mac),
        slot.address
    )
}

fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// The whole firewall, replacing what was there, with the senders of `slots`.
pub fn ruleset(config: &NetworkConfig, slots: &[Slot]) -> String {
    let NetworkConfig {
        table,
        bridge,
        subnet,
        ..
    } = config;
    let ports = config.port_prefix();
    let senders = elements(slots.iter().map(sender));
    let denied = elements(
        DENIED
            .into_iter()
            .map(str::to_owned)
            .chain(deny_networks(config)),
    );
    let closed = elements(config.deny_ports.iter().map(u16::to_string));
    let policies = policies(slots);
    let mut text = clear(config);
    // Writing to a string cannot fail.
    let _ = write!(
        text,
        r#"
table bridge {table} {{
	set senders {{
		type ifname . ether_addr . ipv4_addr
		{senders}
	}}
	chain ports {{
		type filter hook prerouting priority -300; policy accept;
		iifname "{ports}*" ether type ip iifname . ether saddr . ip saddr @senders accept
		iifname "{ports}*" ether type arp iifname . ether saddr . arp saddr ip @senders iifname . arp saddr ether . arp saddr ip @senders accept
		iifname "{ports}*" drop
	}}
}}
table ip {table} {{
	set denied {{
		type ipv4_addr
		flags interval
		auto-merge
		{denied}
	}}
	set closed {{
		type inet_service
		{closed}
	}}
	{policies}
	chain input {{
		type filter hook input priority -10; policy accept;
		iifname "{bridge}" ct state established,related accept
		iifname "{bridge}" jump led
		iifname "{bridge}" drop
	}}
	chain led {{
	}}
	chain inward {{
		type nat hook prerouting priority -100; policy accept;
	}}
	chain forward {{
		type filter hook forward priority -10; policy accept;
		iifname "{bridge}" jump out
		oifname "{bridge}" ct state established,related accept
		oifname "{bridge}" drop
	}}
	chain out {{
		oifname "{bridge}" drop
		ct state established,related accept
		tcp dport @closed drop
		udp dport @closed drop
		ip saddr vmap @policies
		ip daddr @denied drop
		accept
	}}
	chain postrouting {{
		type nat hook postrouting priority 100; policy accept;
		ip saddr {subnet} oifname != "{bridge}" masquerade
	}}
}}
"#
    );
    text
}

/// A chain for each service's own policy, and the map that leads a sender to its own.
fn policies(slots: &[Slot]) -> String {
    let with = || slots.iter().filter(|slot| !slot.egress.is_empty());
    let mut text = String::new();
    for slot in with() {
        let rules = opened(slot).join("\n\t\t");
        let _ = write!(text, "chain {} {{\n\t\t{rules}\n\t}}\n\t", policy(slot));
    }
    let led = elements(with().map(lead));
    let _ = write!(
        text,
        "map policies {{\n\t\ttype ipv4_addr : verdict\n\t\t{led}\n\t}}"
    );
    text
}

/// The name of a slot's chain.
fn policy(slot: &Slot) -> String {
    format!("policy_{}", slot.number)
}

fn lead(slot: &Slot) -> String {
    format!("{} : jump {}", slot.address, policy(slot))
}

/// The rules that let a slot's container into the networks its service names.
fn opened(slot: &Slot) -> Vec<String> {
    let rule = |egress: &Egress| {
        let network = egress.network();
        match egress.ports() {
            None => format!("ip daddr {network} accept"),
            Some((first, last)) => {
                format!(
                    "ip daddr {network} meta l4proto {{ tcp, udp }} th dport {first}-{last} accept"
                )
            }
        }
    };
    slot.egress.iter().map(rule).collect()
}

/// What containers send to services' own addresses, and ask the node for names, is led to the doors
/// that are there for it; those are reached in no other way.
pub fn lead_inward(config: &NetworkConfig, doors: Inward) -> String {
    let NetworkConfig { table, bridge, .. } = config;
    let gateway = config.subnet.gateway();
    let Inward { door, dns } = doors;
    let mut text = String::new();
    for chain in ["led", "inward"] {
        let _ = writeln!(text, "flush chain ip {table} {chain}");
    }
    for (meant, asked, port) in [
        (SERVICE_BLOCK, "tcp dport 1-65535", door),
        (&gateway.to_string(), "udp dport 53", dns),
        (&gateway.to_string(), "tcp dport 53", dns),
    ] {
        let protocol = &asked[..3];
        let _ = writeln!(
            text,
            "add rule ip {table} inward iifname \"{bridge}\" ip daddr {meant} {asked} redirect to :{port}\n\
             add rule ip {table} led ct status dnat ct original ip daddr {meant} {protocol} dport {port} accept"
        );
    }
    text
}

/// Gives a slot its service's policy.
pub fn open(config: &NetworkConfig, slot: &Slot) -> String {
    let (table, chain, lead) = (&config.table, policy(slot), lead(slot));
    let mut text = format!("add chain ip {table} {chain}\nflush chain ip {table} {chain}\n");
    for rule in opened(slot) {
        let _ = writeln!(text, "add rule ip {table} {chain} {rule}");
    }
    let _ = writeln!(text, "add element ip {table} policies {{ {lead} }}");
    text
}

/// Takes a slot's policy away, if it had one.
fn close(config: &NetworkConfig, slot: &Slot) -> String {
    if slot.egress.is_empty() {
        return String::new();
    }
    let (table, chain, lead) = (&config.table, policy(slot), lead(slot));
    // Adding first makes deleting what is not there no error.
    format!(
        "add chain ip {table} {chain}\nadd element ip {table} policies {{ {lead} }}\n\
         delete element ip {table} policies {{ {lead} }}\n\
         flush chain ip {table} {chain}\ndelete chain ip {table} {chain}\n"
    )
}

fn deny_networks(config: &NetworkConfig) -> impl Iterator<Item = String> {
    config.deny.iter().map(ToString::to_string)
}

/// An empty set has no line for its elements.
fn elements(all: impl Iterator<Item = String>) -> String {
    let all: Vec<String> = all.collect();
    if all.is_empty() {
        String::new()
    } else {
        format!("elements = {{ {} }}", all.join(", "))
    }
}

/// Removes both tables, which need not be there.
pub fn clear(config: &NetworkConfig) -> String {
    let table = &config.table;
    ["bridge", "ip"]
        .map(|family| format!("table {family} {table}\ndelete table {family} {table}\n"))
        .concat()
}

/// Lets a new port send.
pub fn admit(config: &NetworkConfig, slot: &Slot) -> String {
    format!(
        "add element bridge {} senders {{ {} }}\n",
        config.table,
        sender(slot)
    )
}

/// Forgets a port.
pub fn dismiss(config: &NetworkConfig, slot: &Slot) -> String {
    // Adding first makes deleting one that is not there no error.
    let (table, sender) = (&config.table, sender(slot));
    format!(
        "add element bridge {table} senders {{ {sender} }}\n\
         delete element bridge {table} senders {{ {sender} }}\n"
    ) + &close(config, slot)
}

/// Has `nft` apply a script, all of it or nothing.
pub async fn apply(script: &str) -> Result<(), NetworkError> {
    let run = async {
        let mut child = Command::new("nft")
            .args(["-f", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(script.as_bytes()).await?;
        }
        child.wait_with_output().await
    };
    let output = tokio::time::timeout(DEADLINE, run)
        .await
        .unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))
        .map_err(NetworkError::Nft)?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(NetworkError::Rules(
        said.lines().take(3).collect::<Vec<_>>().join("; "),
    ))
}

#[cfg(test)]
mod tests {
    use std::process::Stdio;

    use super::*;

    fn slot(config: &NetworkConfig, number: u32, egress: &[&str]) -> Slot {
        Slot {
            egress: egress.iter().map(|text| text.parse().unwrap()).collect(),
            ..config.slot(number)
        }
    }

    /// The lines of `chain out`, in order: the first that fits decides.
    fn out(rules: &str) -> Vec<&str> {
        let chain = rules.split_once("chain out {").unwrap().1;
        chain
            .split_once('}')
            .unwrap()
            .0
            .lines()
            .map(str::trim)
            .filter(|l| !l.is_empty())
            .collect()
    }

    #[test]
    fn what_is_closed_is_asked_before_what_is_opened_and_that_before_what_is_private() {
        let mut config = NetworkConfig::of("rules", "/run/x");
        config.deny_ports = vec![8420, 8422];
        let rules = ruleset(
            &config,
            &[slot(&config, 5, &["10.0.0.0/8:443", "172.16.0.9"])],
        );
        let at = |text: &str| {
            out(&rules)
                .iter()
                .position(|line| line.contains(text))
                .unwrap()
        };
        let order = [
            at("oifname"),
            at("tcp dport @closed drop"),
            at("udp dport @closed drop"),
            at("vmap @policies"),
            at("@denied drop"),
        ];
        assert!(order.is_sorted(), "{order:?}");
        assert_eq!(out(&rules).last(), Some(&"accept"));
        assert!(
            rules.contains("elements = { 10.201.0.5 : jump policy_5 }"),
            "{rules}"
        );
        assert!(
            rules.contains("ip daddr 10.0.0.0/8 meta l4proto { tcp, udp } th dport 443-443 accept"),
            "{rules}"
        );
        assert!(rules.contains("ip daddr 172.16.0.9/32 accept"), "{rules}");
        let bare = ruleset(&config, &[slot(&config, 5, &[])]);
        assert!(
            !bare.contains("jump policy") && !bare.contains("chain policy"),
            "{bare}"
        );
    }

    #[test]
    fn nft_takes_every_script_in_every_order() {
        if !std::path::Path::new("/usr/sbin/nft").exists() {
            return;
        }
        let mut config = NetworkConfig::of("rules", "/run/x");
        config.table = format!("selvedge_rules_{}", std::process::id());
        let with = slot(
            &config,
            7,
            &["10.0.0.0/8:443", "10.1.0.0/16:443", "192.168.0.0/16"],
        );
        let without = slot(&config, 8, &[]);
        let whole = ruleset(&config, &[with.clone(), without.clone()]);
        for scripts in [
            vec![whole.clone()],
            vec![whole.clone(), open(&config, &with), dismiss(&config, &with)],
            vec![
                ruleset(&config, &[]),
                admit(&config, &with),
                open(&config, &with),
                whole,
            ],
            vec![
                ruleset(&config, &[]),
                dismiss(&config, &with),
                dismiss(&config, &without),
            ],
        ] {
            // Checked, not applied: one transaction of all of them.
            let script = scripts.concat();
            let mut child = std::process::Command::new("nft")
                .args(["--check", "-f", "-"])
                .stdin(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap();
            std::io::Write::write_all(&mut child.stdin.take().unwrap(), script.as_bytes()).unwrap();
            let said = child.wait_with_output().unwrap();
            assert!(
                said.status.success(),
                "{}\n{script}",
                String::from_utf8_lossy(&said.stderr)
            );
        }
    }

    #[test]
    fn what_is_led_inward_is_let_in_at_the_doors_and_nowhere_else() {
        let config = NetworkConfig::of("rules", "/run/x");
        let whole = ruleset(&config, &[]);
        let input = whole.split_once("chain input {").unwrap().1;
        let at = |text: &str| input.find(text).unwrap();
        let (jump, drop) = (at("jump led"), at("\" drop"));
        assert!(jump < drop, "{input}");
        let led = lead_inward(
            &config,
            Inward {
                door: 4001,
                dns: 4002,
            },
        );
        let rules: Vec<&str> = led.lines().filter(|l| l.starts_with("add")).collect();
        let bridge = &config.bridge;
        let want = [
            format!("add rule ip selvedge inward iifname \"{bridge}\" ip daddr 198.18.0.0/15 tcp dport 1-65535 redirect to :4001"),
            "add rule ip selvedge led ct status dnat ct original ip daddr 198.18.0.0/15 tcp dport 4001 accept".to_owned(),
            format!("add rule ip selvedge inward iifname \"{bridge}\" ip daddr 10.201.0.1 udp dport 53 redirect to :4002"),
            "add rule ip selvedge led ct status dnat ct original ip daddr 10.201.0.1 udp dport 4002 accept".to_owned(),
        ];
        assert_eq!(rules[..4], want);
    }
}

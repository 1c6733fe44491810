//! What is taken in of a service's own ports: which may be asked for, and whose they are already.

use super::validate::{at_most, ensure, invalid, short};
use super::{Refusal, State};
use crate::model::{Listen, ListenProtocol, RevisionSpec, Service, is_host};

const LISTENS: usize = 16;
const NAMES: usize = 64;
const CALLERS: usize = 256;
const IDLE_SECONDS: u32 = 86_400;
/// The inner side's port of HTTP, at every service's own address.
const INNER_HTTP: u16 = 80;
/// Ports of the nodes' own: the operator's shell, DNS, the front door, the API, metrics, the mesh.
const TCP: [(u16, &str); 7] = [
    (22, "the operators' shell's"),
    (53, "DNS's"),
    (80, "the front door's"),
    (443, "the front door's, but for protocol \"tls\""),
    (8420, "the API's"),
    (8421, "the metrics'"),
    (8422, "the mesh's"),
];
const UDP: [(u16, &str); 3] = [
    (53, "DNS's"),
    (443, "the front door's"),
    (8422, "the mesh's"),
];

pub(super) fn validate_listens(spec: &RevisionSpec) -> Result<(), Refusal> {
    at_most("listen", spec.listen.len() as u64, LISTENS as u64)?;
    at_most("network.callers", spec.callers.len() as u64, CALLERS as u64)?;
    for (at, listen) in spec.listen.iter().enumerate() {
        validate_listen(listen)?;
        let twice = spec.listen[..at]
            .iter()
            .any(|l| l.socket() == listen.socket());
        ensure(!twice, "listen.port", || {
            format!("{} is given twice", listen.socket())
        })?;
    }
    Ok(())
}

fn validate_listen(listen: &Listen) -> Result<(), Refusal> {
    ensure(listen.port > 0, "listen.port", || "0 is no port".to_owned())?;
    reserved(listen)?;
    at_most(
        "listen.idle",
        listen.idle_seconds.into(),
        IDLE_SECONDS.into(),
    )?;
    at_most("listen.sni", listen.sni.len() as u64, NAMES as u64)?;
    let tls = listen.protocol == ListenProtocol::Tls;
    ensure(tls || listen.sni.is_empty(), "listen.sni", || {
        "only protocol \"tls\" tells connections apart by name".to_owned()
    })?;
    ensure(!tls || !listen.sni.is_empty(), "listen.sni", || {
        "protocol \"tls\" needs the names that clients ask for".to_owned()
    })?;
    for name in &listen.sni {
        ensure(is_host(name), "listen.sni", || {
            format!(
                "`{}` is no host name in lower case, nor `*.` and one",
                short(name)
            )
        })?;
    }
    let udp = listen.protocol == ListenProtocol::Udp;
    ensure(
        !(udp && listen.proxy_protocol),
        "listen.proxy_protocol",
        || "datagrams carry no introduction".to_owned(),
    )
}

fn reserved(listen: &Listen) -> Result<(), Refusal> {
    let port = listen.port;
    if listen.private {
        let http = port == INNER_HTTP && !listen.socket().udp;
        return ensure(!http, "listen.port", || {
            format!("{port} is where containers reach the service by HTTP")
        });
    }
    let list: &[(u16, &str)] = if listen.socket().udp { &UDP } else { &TCP };
    let taken = list.iter().find(|(taken, _)| *taken == port);
    match taken {
        Some((443, _)) if listen.protocol == ListenProtocol::Tls => Ok(()),
        Some((_, whose)) => Err(invalid(
            "listen.port",
            format!("{} is {whose} on every node", listen.socket()),
        )),
        None => Ok(()),
    }
}

/// Whether no other service has what this one, as it is to be, asks for.
pub(super) fn ensure_free(state: &State, service: &Service) -> Result<(), Refusal> {
    let public = |l: &&Listen| !l.private;
    let asked: Vec<&Listen> = claims(state, service).filter(public).collect();
    if asked.is_empty() {
        return Ok(());
    }
    for other in state.services.values().filter(|s| s.key != service.key) {
        for theirs in claims(state, other).filter(public) {
            if let Some(ours) = asked.iter().find(|ours| ours.clashes(theirs)) {
                let message = format!("{} is the service {}'s", ours.socket(), other.key);
                return Err(invalid("listen.port", message));
            }
        }
    }
    Ok(())
}

/// What its template names, and what the revisions have that its traffic goes to: those of long ago may
/// have had what another service has now.
pub(super) fn claims<'a>(
    state: &'a State,
    service: &'a Service,
) -> impl Iterator<Item = &'a Listen> {
    let routed = service.routed().into_iter();
    let revisions = routed.filter_map(|key| state.revisions.get(&key));
    let served = revisions.flat_map(|r| &r.spec.listen);
    service.spec.listen.iter().chain(served)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(listen: Listen) -> Option<String> {
        let spec = RevisionSpec {
            listen: vec![listen],
            ..RevisionSpec::default()
        };
        let refusal = validate_listens(&spec).err()?;
        Some(refusal.to_string())
    }

    fn listen(port: u16, protocol: ListenProtocol, sni: &[&str]) -> Listen {
        let sni = sni.iter().map(|s| (*s).to_owned()).collect();
        Listen {
            port,
            protocol,
            sni,
            ..Listen::default()
        }
    }

    #[test]
    fn each_fault_is_told_with_its_field() {
        use ListenProtocol::{Tcp, Tls, Udp};
        let table: &[(Listen, Option<&str>)] = &[
            (listen(5432, Tcp, &[]), None),
            (listen(5353, Udp, &[]), None),
            (listen(443, Tls, &["db.example.com", "*.example.com"]), None),
            (listen(0, Tcp, &[]), Some("listen.port: 0 is no port")),
            (
                listen(80, Tcp, &[]),
                Some("listen.port: 80/tcp is the front door's on every node"),
            ),
            (
                listen(53, Udp, &[]),
                Some("listen.port: 53/udp is DNS's on every node"),
            ),
            (listen(443, Tcp, &[]), Some("listen.port: 443/tcp is")),
            (listen(5432, Tcp, &["a.test"]), Some("listen.sni: only")),
            (listen(5432, Tls, &[]), Some("listen.sni: protocol")),
            (listen(5432, Tls, &["A.test"]), Some("listen.sni: `A.test`")),
            (
                listen(5432, Tls, &["*.*.test"]),
                Some("listen.sni: `*.*.test`"),
            ),
            (
                listen(5432, Tls, &["a..test"]),
                Some("listen.sni: `a..test`"),
            ),
            (
                Listen {
                    proxy_protocol: true,
                    ..listen(5353, Udp, &[])
                },
                Some("listen.proxy_protocol"),
            ),
            (
                Listen {
                    idle_seconds: IDLE_SECONDS + 1,
                    ..listen(5432, Tcp, &[])
                },
                Some("listen.idle: 86401 is above 86400"),
            ),
            (
                Listen {
                    private: true,
                    ..listen(22, Tcp, &[])
                },
                None,
            ),
            (
                Listen {
                    private: true,
                    ..listen(80, Tcp, &[])
                },
                Some("listen.port: 80 is where containers reach"),
            ),
        ];
        for (listen, want) in table {
            let got = said(listen.clone());
            let fits = match (&got, want) {
                (Some(got), Some(want)) => got.starts_with(want),
                (got, want) => got.is_none() && want.is_none(),
            };
            assert!(fits, "{listen:?}: {got:?}");
        }
    }

    #[test]
    fn a_port_is_given_once() {
        use ListenProtocol::{Tcp, Tls};
        let spec = RevisionSpec {
            listen: vec![listen(5432, Tcp, &[]), listen(5432, Tls, &["a.test"])],
            ..RevisionSpec::default()
        };
        let refusal = validate_listens(&spec).unwrap_err();
        assert_eq!(refusal.to_string(), "listen.port: 5432/tcp is given twice");
    }
}

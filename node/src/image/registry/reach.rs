//! Where a registry may make this node go. A registry, or whoever answers for its name, chooses the
//! places its redirects and token realms lead to: a public one must not make this node knock at
//! addresses inside the operator's network, and none at all may make it ask where clouds tell a
//! machine its own secrets. Owns that rule and the HTTP clients that keep it; knows no protocol.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::redirect::Policy;
use reqwest::{Certificate, Client, ClientBuilder, Url};

const MAX_REDIRECTS: usize = 5;
/// How the refusals of this room begin, by which they are known in a client's errors.
pub(in super::super) const REFUSED: &str = "the registry sends us where it must not";
pub(in super::super) const TOO_MANY: &str = "the registry redirects without end";
const IDLE_CONNECTION: Duration = Duration::from_secs(30);
/// Where some clouds answer a machine's questions about itself, apart from link-local addresses.
const METADATA: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
];

/// What one registry may do. It is inside the operator's network when its name leads there and was
/// never seen to lead to a public address too: whoever can change a public name's addresses cannot
/// open the way in by it.
#[derive(Debug)]
pub(in super::super) struct Reach {
    host: String,
    inside: AtomicBool,
    public: AtomicBool,
}

impl Reach {
    pub(in super::super) fn new(host: &str) -> Arc<Self> {
        let host = bare(host).to_owned();
        let inside = AtomicBool::new(is_inside(&host));
        let public = AtomicBool::new(host.parse().is_ok_and(is_public));
        Arc::new(Self {
            host,
            inside,
            public,
        })
    }

    /// Whether anybody may be asked at `url` on this registry's word, who was asked at `from`. A name
    /// is looked at again when its addresses are known.
    pub(in super::super) fn may_go(&self, from: &Url, url: &Url) -> bool {
        let host = bare(url.host_str().unwrap_or_default());
        let never = host.parse().is_ok_and(is_never);
        let open = !is_inside(host) || self.is_inside();
        let scheme = match url.scheme() {
            "https" => true,
            "http" => from.scheme() == "http",
            _ => false,
        };
        scheme && open && !never
    }

    fn is_inside(&self) -> bool {
        self.inside.load(Ordering::Relaxed) && !self.public.load(Ordering::Relaxed)
    }

    /// Those of a name's addresses that may be connected to.
    fn fitting(&self, name: &str, mut found: Vec<SocketAddr>) -> Vec<SocketAddr> {
        found.retain(|address| !is_never(address.ip()));
        let public = found.iter().any(|address| is_public(address.ip()));
        if bare(name) == self.host && !found.is_empty() {
            let seen = if public { &self.public } else { &self.inside };
            seen.store(true, Ordering::Relaxed);
        }
        if !self.is_inside() {
            found.retain(|address| is_public(address.ip()));
        }
        found
    }
}

/// Asks the system's resolver and takes what fits.
struct Names(Arc<Reach>);

impl Resolve for Names {
    fn resolve(&self, name: Name) -> Resolving {
        let reach = Arc::clone(&self.0);
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let fitting = reach.fitting(name.as_str(), found.collect());
            if fitting.is_empty() {
                return Err(format!("{REFUSED}: the addresses of `{}`", name.as_str()).into());
            }
            Ok(Box::new(fitting.into_iter()) as Addrs)
        })
    }
}

/// Whom a connection trusts.
#[derive(Debug, Clone)]
pub(in super::super) enum Trust {
    /// Nobody: plain HTTP, on a machine that may have no CA certificates.
    Plain,
    /// The machine's CA certificates, and these, which do where the machine has none.
    Tls(Vec<Certificate>),
}

/// The client for one registry and the places it sends us to.
pub(in super::super) fn client(
    reach: &Arc<Reach>,
    trust: &Trust,
    connect: Duration,
) -> Result<Client, reqwest::Error> {
    let builder = || builder(reach, connect);
    match trust {
        Trust::Plain => builder().tls_certs_only(std::iter::empty()).build(),
        Trust::Tls(own) if own.is_empty() => builder().build(),
        Trust::Tls(own) => {
            let both = builder().tls_certs_merge(own.clone()).build();
            both.or_else(|_| builder().tls_certs_only(own.clone()).build())
        }
    }
}

fn builder(reach: &Arc<Reach>, connect: Duration) -> ClientBuilder {
    let allowed = Arc::clone(reach);
    let redirects = Policy::custom(move |attempt| {
        let from = attempt.previous().first().cloned();
        let fits = from.is_some_and(|from| allowed.may_go(&from, attempt.url()));
        if attempt.previous().len() > MAX_REDIRECTS {
            attempt.error(TOO_MANY)
        } else if fits {
            attempt.follow()
        } else {
            let place = attempt.url().host_str().unwrap_or_default().to_owned();
            attempt.error(format!("{REFUSED}: {place}"))
        }
    });
    Client::builder()
        .user_agent(concat!("selvedged/", env!("CARGO_PKG_VERSION")))
        .redirect(redirects)
        .dns_resolver(Names(Arc::clone(reach)))
        .no_proxy()
        .pool_idle_timeout(IDLE_CONNECTION)
        .connect_timeout(connect)
}

/// Whether nobody may be asked at this host, whoever named it.
pub(in super::super) fn is_forbidden(host: &str) -> bool {
    bare(host).parse().is_ok_and(is_never)
}

/// A host without an address's brackets and a name's last dot.
fn bare(host: &str) -> &str {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host.strip_suffix('.').unwrap_or(host)
}

/// Whether a host is, as far as it shows, not on the public internet.
fn is_inside(host: &str) -> bool {
    match host.parse::<IpAddr>() {
        Ok(ip) => !is_public(ip),
        Err(_) => host == "localhost" || host.ends_with(".localhost"),
    }
}

/// An IPv6 address that stands for an IPv4 one is that one.
fn plain(ip: IpAddr) -> IpAddr {
    let IpAddr::V6(v6) = ip else { return ip };
    let nat64 = match v6.segments() {
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => {
            let [a, b] = high.to_be_bytes();
            let [c, d] = low.to_be_bytes();
            Some(Ipv4Addr::new(a, b, c, d))
        }
        _ => None,
    };
    let v4 = v6.to_ipv4_mapped().or(nat64);
    v4.map_or(ip, IpAddr::V4)
}

fn is_never(ip: IpAddr) -> bool {
    let ip = plain(ip);
    let link_local = match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    link_local || ip.is_unspecified() || ip.is_multicast() || METADATA.contains(&ip)
}

fn is_public(ip: IpAddr) -> bool {
    let local = match plain(ip) {
        IpAddr::V4(ip) => {
            // Addresses shared by a provider's customers are no host's own.
            let shared = ip.octets()[0] == 100 && (ip.octets()[1] & 0xc0) == 64;
            ip.is_loopback() || ip.is_private() || ip.is_broadcast() || shared
        }
        IpAddr::V6(ip) => ip.is_loopback() || ip.is_unique_local(),
    };
    !local && !is_never(ip)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> Url {
        Url::parse(text).expect("URL")
    }

    fn may_go(from: &str, to: &str) -> bool {
        let from = url(from);
        Reach::new(from.host_str().expect("host")).may_go(&from, &url(to))
    }

    #[test]
    fn a_public_registry_cannot_send_us_inside() {
        let public = "https://r.example/v2/";
        for fine in ["https://cdn.example/x", "https://93.184.216.34/x"] {
            assert!(may_go(public, fine), "{fine}");
        }
        let inside = [
            "http://cdn.example/",
            "https://127.0.0.1/",
            "https://10.1.2.3/",
            "https://[::1]/",
            "https://169.254.169.254/latest/meta-data",
            "https://localhost/",
            "https://localhost./",
            "https://100.64.0.1/",
            "https://[::ffff:10.0.0.1]/",
            "https://[64:ff9b::10.0.0.1]/",
            "https://[fd00::1]/",
            "ftp://cdn.example/",
        ];
        for bad in inside {
            assert!(!may_go(public, bad), "{bad}");
        }
        assert!(may_go("http://127.0.0.1:5000/", "http://127.0.0.1:5001/"));
        assert!(may_go("http://10.0.0.1:5000/", "http://10.0.0.2/"));
        assert!(!may_go("https://10.0.0.1:5000/", "http://10.0.0.2/"));
    }

    #[test]
    fn nobody_is_asked_where_clouds_keep_secrets() {
        for metadata in [
            "169.254.169.254",
            "[fe80::1]",
            "[fd00:ec2::254]",
            "100.100.100.200",
            "[::ffff:169.254.169.254]",
            "0.0.0.0",
        ] {
            assert!(is_forbidden(metadata), "{metadata}");
            let to = format!("http://{metadata}/");
            assert!(!may_go("http://10.0.0.1:5000/", &to), "{metadata}");
        }
        assert!(!is_forbidden("10.0.0.1") && !is_forbidden("r.example"));
    }

    #[test]
    fn names_are_judged_by_their_addresses() {
        let at = |all: &[&str]| -> Vec<SocketAddr> {
            let address = |ip: &&str| SocketAddr::new(ip.parse().expect("address"), 0);
            all.iter().map(address).collect()
        };
        let (inside, outside) = (at(&["10.0.0.5"]), at(&["93.184.216.34"]));
        let mixed = at(&["10.0.0.5", "93.184.216.34", "169.254.169.254"]);
        let (own, other) = ("r.example", "cdn.example");

        let public = Reach::new(own);
        assert_eq!(public.fitting(own, mixed.clone()), outside);
        assert_eq!(public.fitting(other, mixed), outside);
        assert!(public.fitting(other, inside.clone()).is_empty());
        // Its name leads inside now: a public registry's cannot.
        assert!(public.fitting(own, inside.clone()).is_empty());
        assert!(!public.may_go(&url("http://r.example"), &url("http://10.0.0.9")));

        let private = Reach::new(own);
        assert_eq!(private.fitting(own, inside.clone()), inside);
        assert_eq!(private.fitting(other, inside.clone()), inside);
        assert!(private.may_go(&url("http://r.example"), &url("http://10.0.0.9")));
        assert!(private.fitting(other, at(&["169.254.169.254"])).is_empty());
        // It leads outside now: whoever answers there gets no further inside.
        assert_eq!(private.fitting(own, outside.clone()), outside);
        assert!(private.fitting(other, inside).is_empty());
    }

    #[test]
    fn the_plain_client_needs_no_certificates() {
        crate::image::testing::install_tls();
        let (reach, wait) = (Reach::new("localhost"), Duration::from_secs(1));
        client(&reach, &Trust::Plain, wait).expect("nothing it needs can be missing");
        // Where there are none, this is an error to tell, and nothing worse.
        let _ = client(&reach, &Trust::Tls(Vec::new()), wait);
    }
}

//! nginx and haproxy in front of the backend, on the node's host, on a port for each protocol, with the
//! certificate that the node's door has.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;

use anyhow::Result;

use super::Doors;
use crate::bench::group::Group;
use crate::bench::yard::{self, Running};
use crate::world::{self, Node, PATIENCE, World, until};

/// Ports for plain HTTP/1.1, HTTP/2 known before, and TLS.
const NGINX: [u16; 3] = [8099, 8089, 8449];
const HAPROXY: [u16; 3] = [8098, 8088, 8448];

/// A peer that serves, for as long as its handle is kept.
pub struct Peer {
    pub doors: Doors,
    pub group: Group,
    _running: Running,
}

pub type Start = fn(&World, &Node, SocketAddr, &Path) -> Result<Peer>;

/// With a worker a core as the daemon has threads, its connections to the backend kept, and no log of
/// requests.
pub fn nginx(world: &World, node: &Node, backend: SocketAddr, pair: &Path) -> Result<Peer> {
    let home = world.dir().join("nginx");
    fs::create_dir_all(&home)?;
    let config = home.join("nginx.conf");
    fs::write(
        &config,
        nginx_config(&home.display().to_string(), backend, pair),
    )?;
    let (home_arg, config) = (home.to_string_lossy(), config.to_string_lossy());
    let words = ["nginx", "-p", &home_arg, "-c", &config];
    start(world, node, "nginx", &words, NGINX)
}

/// With a thread a core.
pub fn haproxy(world: &World, node: &Node, backend: SocketAddr, pair: &Path) -> Result<Peer> {
    let home = world.dir().join("haproxy");
    fs::create_dir_all(&home)?;
    let config = home.join("haproxy.cfg");
    fs::write(&config, haproxy_config(backend, pair))?;
    let words = ["haproxy", "-f", &config.to_string_lossy()];
    start(world, node, "haproxy", &words, HAPROXY)
}

fn start(world: &World, node: &Node, name: &str, words: &[&str], ports: [u16; 3]) -> Result<Peer> {
    let group = Group::of(world, &format!("bench-{name}"))?;
    let log = world.dir().join(name).join("log");
    let running = yard::waiting(&node.netns, &group, &log, words)?.begin()?;
    let [plain, h2c, tls] = ports.map(|port| (node.address, port).into());
    let doors = Doors { plain, h2c, tls };
    until(&format!("{name} answers"), PATIENCE, || {
        let asked = world::Request::get(super::SERVICE, "/").send(doors.plain);
        asked?.ok().map(Some)
    })?;
    Ok(Peer {
        doors,
        group,
        _running: running,
    })
}

fn nginx_config(home: &str, backend: SocketAddr, pair: &Path) -> String {
    let [plain, h2c, tls] = NGINX;
    let pair = pair.display();
    format!(
        "daemon off; worker_processes auto; pid {home}/pid; error_log {home}/error.log;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    client_body_temp_path {home}/body; proxy_temp_path {home}/proxy; fastcgi_temp_path {home}/fastcgi;
    uwsgi_temp_path {home}/uwsgi; scgi_temp_path {home}/scgi;
    keepalive_requests 1000000000;
    upstream backend {{ server {backend}; keepalive 256; keepalive_requests 1000000000; }}
    server {{
        listen {plain} reuseport;
        listen {h2c} reuseport http2;
        listen {tls} reuseport ssl http2;
        ssl_certificate {pair}; ssl_certificate_key {pair};
        location / {{ proxy_pass http://backend; proxy_http_version 1.1; proxy_set_header Connection \"\"; }}
    }}
}}
"
    )
}

fn haproxy_config(backend: SocketAddr, pair: &Path) -> String {
    let [plain, h2c, tls] = HAPROXY;
    let pair = pair.display();
    format!(
        "global
    maxconn 4096
defaults
    mode http
    timeout connect 5s
    timeout client 60s
    timeout server 60s
    option http-keep-alive
    http-reuse always
frontend door
    bind :{plain}
    bind :{h2c} proto h2
    bind :{tls} ssl crt {pair} alpn h2,http/1.1
    default_backend backend
backend backend
    server one {backend}
"
    )
}

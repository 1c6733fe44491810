//! Where the daemon dies, and what makes it come by there. Owns no test.

/// What makes a daemon come by a point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// A service is deployed, and its first instance starts.
    Deploy,
    /// The same with volumes of every kind that a node makes.
    Equip,
    /// A request comes for a service at zero that has a container parked.
    Request,
    /// A request comes for a service at zero, and nothing is parked.
    Unparked,
    /// Nobody asks a running instance anything.
    Idle,
    /// A request comes for an instance that is held still.
    Thaw,
    /// A service with a running instance is deleted.
    Delete,
    /// An image that is not here is fetched.
    Pull,
    /// One with a layer so large that what came of it is worth keeping.
    Large,
    /// The same after a daemon died in the middle of it.
    Resume,
    /// One that another node holds.
    Share,
    Import,
    /// A service starts whose image comes from another node and is read on the way.
    Arrive,
    /// An image is pushed to this node.
    Push,
    /// An image is removed.
    Remove,
    /// The daemon starts where an instance runs.
    Boot,
    /// So many changes that the registry writes a snapshot.
    Changes,
}

use Step::{
    Arrive, Boot, Changes, Delete, Deploy, Equip, Idle, Import, Large, Pull, Push, Remove, Request,
    Resume, Share, Thaw, Unparked,
};

/// Every point of `selvedged --failpoints`, and what leads there.
pub const POINTS: [(&str, Step); 89] = [
    ("image::resolved", Pull),
    ("image::planned", Pull),
    ("image::received", Import),
    ("image::archive_read", Import),
    ("image::layer_begun", Pull),
    ("image::piece_kept", Large),
    ("image::resuming", Resume),
    ("image::list_taken", Share),
    ("image::window_passed", Share),
    ("image::layer_unpacked", Pull),
    ("image::layer_marked", Pull),
    ("image::layer_named", Pull),
    ("image::documents_kept", Pull),
    ("image::recorded", Pull),
    ("image::coming_begun", Arrive),
    ("image::coming_recorded", Arrive),
    ("image::coming_mounted", Arrive),
    ("image::coming_shown", Arrive),
    ("image::coming_whole", Arrive),
    ("image::coming_settled", Arrive),
    ("image::upload_begun", Push),
    ("image::upload_written", Push),
    ("image::blob_arrived", Push),
    ("image::push_kept", Push),
    ("image::struck", Remove),
    ("image::unrecorded", Remove),
    ("image::layer_buried", Remove),
    ("image::buried", Remove),
    ("image::removed", Remove),
    ("image::use_noted", Deploy),
    ("image::laid_out", Deploy),
    ("image::mounted", Deploy),
    ("image::unmounted", Delete),
    ("network::named", Deploy),
    ("network::kept", Deploy),
    ("network::paired", Deploy),
    ("network::plugged", Deploy),
    ("network::made", Deploy),
    ("network::admitted", Deploy),
    ("network::taken", Deploy),
    ("network::leased", Deploy),
    ("network::released", Delete),
    ("network::unplugged", Delete),
    ("network::dismissed", Delete),
    ("network::removed", Delete),
    ("agent::admitted", Deploy),
    ("agent::folder_made", Deploy),
    ("agent::record_written", Deploy),
    ("agent::recorded", Deploy),
    ("volumes::local_made", Equip),
    ("volumes::laid_out", Equip),
    ("volumes::mounted", Equip),
    ("volumes::filled", Equip),
    ("volumes::equipped", Equip),
    ("volumes::unmounted", Delete),
    ("runtime::spec_written", Deploy),
    ("runtime::shim_spawned", Deploy),
    ("runtime::created", Deploy),
    ("agent::prepared", Deploy),
    ("agent::parked", Deploy),
    ("agent::unparked", Request),
    ("runtime::started", Deploy),
    ("agent::launched", Deploy),
    ("agent::opened", Deploy),
    ("agent::frozen", Idle),
    ("agent::thawed", Thaw),
    ("agent::closed", Delete),
    ("agent::drained", Delete),
    ("runtime::signalled", Delete),
    ("runtime::exit_told", Delete),
    ("agent::exited", Delete),
    ("runtime::deleting", Delete),
    ("agent::deleted", Delete),
    ("agent::cleared", Delete),
    ("agent::log_shelved", Delete),
    ("agent::retired", Delete),
    ("agent::found", Boot),
    ("agent::leases_adopted", Boot),
    ("agent::adopted", Boot),
    ("consensus::voted", Boot),
    ("consensus::proposed", Deploy),
    ("consensus::appending", Deploy),
    ("consensus::appended", Deploy),
    ("consensus::applied", Deploy),
    ("consensus::agreed", Deploy),
    ("consensus::snapshot_built", Changes),
    ("consensus::snapshot_written", Changes),
    ("consensus::purging", Changes),
    ("consensus::purged", Changes),
];

/// Points that a request leads to as well, which then waits at the front door.
pub const AWAITED: [(&str, Step); 3] = [
    ("network::leased", Unparked),
    ("runtime::created", Unparked),
    ("agent::opened", Request),
];

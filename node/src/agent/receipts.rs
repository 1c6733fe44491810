//! Why instances are on this node: the newest receipts, those of ended instances included.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use scheduler::model::InstanceId;
use scheduler::place::Receipt;

/// Receipts kept.
const KEPT: usize = 1000;

/// Written by the driver, read by whoever explains. Clones are the same.
#[derive(Debug, Clone, Default)]
pub(super) struct Receipts(Arc<Mutex<Book>>);

#[derive(Debug, Default)]
struct Book {
    by_instance: BTreeMap<InstanceId, Receipt>,
    order: VecDeque<InstanceId>,
}

impl Receipts {
    /// The oldest is forgotten first.
    pub(super) fn keep(&self, id: InstanceId, receipt: Receipt) {
        let mut book = self.book();
        if book.by_instance.insert(id.clone(), receipt).is_none() {
            book.order.push_back(id);
        }
        while book.order.len() > KEPT {
            let oldest = book.order.pop_front();
            oldest.map(|id| book.by_instance.remove(&id));
        }
    }

    pub(super) fn of(&self, id: &InstanceId) -> Option<Receipt> {
        self.book().by_instance.get(id).cloned()
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

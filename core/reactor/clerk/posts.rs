//! What the clerk does about posts: takes them in, brings them to mind, and keeps how they end.

use std::time::Duration;

use demi_conductor::{Grave, RouteId, Tries};

use super::{store_problem, Office, Owed, ERRANDS_BEFORE_LISTING_MAX, ERRANDS_BEFORE_NOTES_MAX, ERRANDS_MAX};
use crate::api;
use crate::chronicle::unix_ms;
use crate::mailbox::Letter;
use crate::problem::Problem;
use crate::store::{DeadLetter, Post, PostResult, Posted, StoreError};

/// What is to be done about posts.
pub(crate) enum PostErrand {
    /// To be kept for the client at a place; [`Letter::Posted`] follows.
    Take {
        place: usize,
        serial: u64,
        /// Where it goes.
        route: RouteId,
        /// Its conversation; 0: none.
        key: u64,
        /// Bytes of it, which count as held until it is kept.
        held: usize,
        post: Box<Post>,
    },
    /// To be brought to mind; [`Letter::PostRead`] follows.
    Read(u64),
    /// An attempt to deliver it failed, and it is tried again; no letter follows.
    Note { id: u64, tries: Tries, error: String },
    /// It has ended; [`Letter::PostEnded`] follows.
    End { id: u64, ending: Box<Ending> },
    /// What is known of one, for the client at a place.
    Show { place: usize, serial: u64, id: u64 },
}

/// A post that was to be brought to mind.
pub(crate) enum PostRead {
    Post(Box<Post>),
    /// The disk refuses.
    NotNow,
    /// It is unreadable, or does not wait any more.
    Never,
}

/// How a post ends.
#[derive(Clone)]
pub(crate) enum Ending {
    /// It was delivered.
    Delivered(PostResult),
    /// It is to be a dead letter.
    Buried {
        grave: Grave,
        attempts: u32,
        /// Of the last answer; 0 if there was none.
        status: u16,
        /// What went wrong last; empty if nothing was tried.
        error: String,
    },
}

/// A post that is durable: what the conductor must know of it.
pub(crate) struct Parcel {
    pub(crate) id: u64,
    pub(crate) route: RouteId,
    /// Its conversation; 0: none.
    pub(crate) key: u64,
    /// 0: at once.
    pub(crate) not_before_unix_ms: u64,
    /// 0: never.
    pub(crate) expires_unix_ms: u64,
    /// Whether it was taken now, and not before under the same idempotency key.
    pub(crate) is_new: bool,
    /// Whether it is still to be delivered.
    pub(crate) waits: bool,
}

/// A post that was written and is not durable yet, and who waits for that.
pub(super) struct TakenIn {
    place: usize,
    serial: u64,
    held: usize,
    parcel: Box<Parcel>,
}

impl PostErrand {
    /// It is refused while so many errands wait. What ends a post goes before what brings more of them.
    pub(super) fn errands_max(&self) -> usize {
        match self {
            PostErrand::End { .. } => ERRANDS_MAX,
            PostErrand::Take { .. } | PostErrand::Read(_) | PostErrand::Note { .. } => ERRANDS_BEFORE_NOTES_MAX,
            PostErrand::Show { .. } => ERRANDS_BEFORE_LISTING_MAX,
        }
    }
}

impl Office<'_> {
    pub(super) fn see_to_post(&mut self, errand: PostErrand) {
        match errand {
            PostErrand::Take { place, serial, route, key, held, post } => {
                self.take_in(place, serial, route, key, held, &post)
            }
            PostErrand::Read(id) => {
                let read = match self.vault.ask(|store| store.read_post(id)) {
                    Ok(Some(post)) => PostRead::Post(Box::new(post)),
                    Ok(None) => {
                        log::error!("message {id} is not in the store any more and cannot be delivered");
                        PostRead::Never
                    }
                    Err(StoreError::Damaged { what, .. }) => {
                        log::error!("message {id} cannot be delivered: {what}");
                        PostRead::Never
                    }
                    Err(StoreError::Shut(_)) => PostRead::NotNow,
                    Err(error) => {
                        log::error!("message {id} cannot be read, and is tried again: {error}");
                        PostRead::NotNow
                    }
                };
                self.postbox.post(Letter::PostRead(id, read));
            }
            PostErrand::Note { id, tries, error } => {
                let noted = self.vault.ask(|store| store.note_tries(id, tries.attempts, tries.kills, &error));
                if let Err(error) = noted.map(drop).or_else(super::told_already) {
                    log::error!("what went wrong with post {id} is not kept: {error}");
                }
            }
            PostErrand::End { id, ending } => self.end_post(id, *ending),
            PostErrand::Show { place, serial, id } => {
                let page = self.vault.ask(|store| {
                    Ok(match store.post_result(id)? {
                        Some(result) => Some(api::ended_json(id, &result)),
                        None => match store.read_post(id) {
                            // It becomes a dead letter when it has its turn.
                            Err(StoreError::Damaged { what, .. }) => {
                                Some(api::waiting_json(id, &Post { last_error: what, ..Post::default() }))
                            }
                            post => post?.map(|post| api::waiting_json(id, &post)),
                        },
                    })
                });
                let page = match page {
                    // It may tell what this group has written and is not durable yet.
                    Ok(Some(page)) if !self.owed.is_empty() => {
                        return self.owed.push(Owed::Page { place, serial, page });
                    }
                    Ok(page) => page.ok_or_else(|| Box::new(api::no_message(id))),
                    Err(error) => Err(Box::new(store_problem(error))),
                };
                self.postbox.post(Letter::Listed { place, serial, page });
            }
        }
    }

    fn take_in(&mut self, place: usize, serial: u64, route: RouteId, key: u64, held: usize, post: &Post) {
        let posts_max = self.posts_max;
        let (id, is_new, waits) = match self.vault.ask(|store| store.post(post, posts_max)) {
            Ok(Posted::New(id)) => (id, true, true),
            Ok(Posted::Known(id, result)) => (id, false, result.is_none()),
            Ok(Posted::Conflict(id)) => {
                let what = format!("its Idempotency-Key was used for message {id}, which is another; use a new key");
                let posted = Err(Box::new(Problem::new(409, what).code("idempotency_key")));
                return self.postbox.post(Letter::Posted { place, serial, held, posted });
            }
            Err(error) => {
                let posted = Err(Box::new(self.refusal(error)));
                return self.postbox.post(Letter::Posted { place, serial, held, posted });
            }
        };
        self.refuses_posts &= !is_new;
        let (not_before_unix_ms, expires_unix_ms) = (post.not_before_unix_ms, post.expires_unix_ms);
        let parcel = Box::new(Parcel { id, route, key, not_before_unix_ms, expires_unix_ms, is_new, waits });
        self.owed.push(Owed::Taken(TakenIn { place, serial, held, parcel }));
    }

    fn refusal(&mut self, error: StoreError) -> Problem {
        match error {
            StoreError::PostsFull { .. } | StoreError::Full { .. } => {
                // Once until one is taken again: each would say the same.
                if !std::mem::replace(&mut self.refuses_posts, true) {
                    log::error!("messages are refused: {error}");
                }
                Problem::new(507, error.to_string()).code("queue_full").retry_after(Duration::from_secs(30))
            }
            StoreError::Refused(why) => Problem::new(400, why),
            StoreError::Shut(_) => store_problem(error),
            error => {
                log::error!("a message could not be kept: {error}");
                Problem::new(503, error.to_string()).code("store").retry_after(Duration::from_secs(30))
            }
        }
    }

    pub(super) fn tell_taken(&self, taken: TakenIn, flushed: &Result<(), String>) {
        let TakenIn { place, serial, held, parcel } = taken;
        let posted = flushed.clone().map(|()| parcel).map_err(|error| {
            let problem = Problem::new(503, format!("it may not be kept: {error}"));
            Box::new(problem.code("store").retry_after(Duration::from_secs(30)))
        });
        self.postbox.post(Letter::Posted { place, serial, held, posted });
    }

    fn end_post(&mut self, id: u64, ending: Ending) {
        let done = match ending {
            Ending::Delivered(result) => self.vault.ask(|store| store.settle_post(id, &result)).map(drop),
            Ending::Buried { grave, attempts, status, error } => self.vault.ask(|store| match store.read_post(id) {
                Ok(Some(post)) => store.bury_post(id, letter_of(post, grave, attempts, error), status).map(drop),
                Ok(None) => Ok(()),
                Err(StoreError::Damaged { what, .. }) => store.bury_damaged(id, &what, unix_ms()).map(drop),
                Err(error) => Err(error),
            }),
        };
        match done {
            // One that does not wait any more has ended, and that may not be durable yet.
            Ok(()) => return self.owed.push(Owed::PostEnded(id)),
            Err(StoreError::Shut(_)) => {}
            Err(error) => log::error!("the end of post {id} is not kept, and is tried again: {error}"),
        }
        self.postbox.post(Letter::PostEnded(id, false));
    }
}

fn letter_of(post: Post, grave: Grave, attempts: u32, error: String) -> DeadLetter {
    DeadLetter {
        buried_at_unix_ms: unix_ms(),
        platform: post.platform,
        reason: grave.name().to_owned(),
        attempts,
        from: post.from,
        kind: post.kind,
        method: post.method,
        target: post.target,
        content_type: post.content_type,
        body: post.body,
        route: post.route,
        first_error: if post.first_error.is_empty() { error.clone() } else { post.first_error },
        last_error: if error.is_empty() { post.last_error } else { error },
        conversation: post.conversation,
        ..DeadLetter::default()
    }
}

//! The life of a request, stage by stage.

"""The study: edits of one model side by side, matched in forgetting, compared in price."""

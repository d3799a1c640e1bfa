package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/internal/inspect"
	"github.com/pgidem/idempotency/internal/keytable"
)

// lines are for people.
func operationLines(op *inspect.Operation, now inspect.Instant) [][]string {
	lines := [][]string{
		{"procedure:", inspect.Plain(op.Procedure)},
		{"started:", op.StartedAt.In(now)},
		{"progressed:", op.ProgressedAt.In(now)},
	}
	for _, label := range op.Done {
		lines = append(lines, []string{"done:", inspect.Plain(label)})
	}
	if op.Begun != "" {
		outcome := ": its outcome is not known"
		if op.Unsure {
			outcome = ": this role may not see whether it has ended (select on the column results)"
		}
		lines = append(lines, []string{"begun:", inspect.Plain(op.Begun) + outcome})
	}
	if op.Attempts > 0 {
		lines = append(lines, []string{"attempts:", fmt.Sprintf("%d of Store.Complete have failed, the next is due %s", op.Attempts, op.DueAt.In(now))})
	}
	if op.Error != nil {
		lines = append(lines, []string{"error:", inspect.Plain(*op.Error)})
	}
	return lines
}

// progress says where an operation is that somebody works at.
func progress(op *inspect.Operation) string {
	done := "nothing"
	if len(op.Done) > 0 {
		done = strings.Join(op.Done, ", ")
	}
	text := fmt.Sprintf("procedure %s has done: %s", op.Procedure, done)
	if op.Begun != "" {
		text += "; it has begun: " + op.Begun
	}
	return inspect.Plain(text)
}

func backlogText(b *inspect.Backlog, now inspect.Instant) string {
	parts := []string{inspect.Count(b.Operations)}
	if b.InCalls != nil && *b.InCalls > 0 {
		parts = append(parts, inspect.Count(*b.InCalls)+" in a call whose outcome is not known")
	}
	if b.Failed > 0 {
		parts = append(parts, inspect.Count(b.Failed)+" that Store.Complete has tried in vain")
	}
	if b.Oldest != nil {
		parts = append(parts, "the oldest has not progressed since "+b.Oldest.In(now))
	}
	return strings.Join(parts, ", ") + " (list -state unfinished)"
}

// changeOperation calls do for an operation of a procedure that has not ended. Each of its
// transactions looks at both tables first.
func (d *database) changeOperation(ctx context.Context, scope, id string, do func(context.Context, *idempotency.Store, idempotency.Key) error) error {
	return d.useTable(ctx, func(ctx context.Context, pool *pgxpool.Pool) error {
		store, err := d.store(pool, nil)
		if err != nil {
			return err
		}
		rec := inspect.Record{Scope: scope, ID: id}
		err = do(d.Changing(ctx, keytable.Writing, idempotency.ErrNotFound), store, idempotency.Key{Scope: scope, ID: id})
		switch {
		case errors.Is(err, idempotency.ErrNotFound):
			return exitError{exitNotFound, "no procedure with " + rec.Key() + " has begun and not ended: get tells what became of it"}
		case errors.Is(err, idempotency.ErrInProgress):
			rec.State = inspect.InProgress
			if rec.Holders, err = d.Holders(ctx, pool, scope, id); err == nil {
				err = stillHeld(rec)
			}
		}
		return err
	})
}

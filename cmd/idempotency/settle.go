package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"time"

	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/internal/inspect"
	"github.com/pgidem/idempotency/internal/keytable"
)

var settle = &command{
	name:    "settle",
	args:    "SCOPE KEY CALL OUTCOME",
	summary: "enter the outcome of a procedure's call that is not known",
	text: `When a call is too old to be made again, a person looks at the other side, and enters
here what became of it. CALL is its name, as get shows it. OUTCOME is what the call's
function would have returned, as JSON: nothing knows here what type the program reads it
into, and where it does not fit, each attempt fails. The next request of the client, or
Store.Complete, goes on behind the call, which is never made again.

It exits with 4, and changes nothing, while an attempt is at work, and with 3 if no
procedure with the key has begun and not ended.`,
	setup: func(fs *flag.FlagSet) action {
		db := databaseFlags(fs, time.Minute)
		db.Use = keytable.Writing
		yes := fs.Bool("yes", false, "do not ask")
		return func(ctx context.Context, std stdio, args []string) error {
			scope, id, call, outcome := args[0], args[1], args[2], args[3]
			if !json.Valid([]byte(outcome)) {
				return usageError{`OUTCOME is not JSON: a text needs quotes in it, such as '"ch_1"'`, true}
			}
			if !*yes {
				cfg, err := db.config()
				if err == nil {
					err = confirm(ctx, std, fmt.Sprintf("this enters %s as the outcome of call %s of key %s of scope %s in %s; the operation goes on with it",
						inspect.Plain(outcome), inspect.Plain(call), inspect.Plain(id), inspect.Plain(scope), place(&cfg.ConnConfig.Config)))
				}
				if err != nil {
					return err
				}
			}
			return db.changeOperation(ctx, scope, id, func(ctx context.Context, store *idempotency.Store, key idempotency.Key) error {
				if err := store.Settle(ctx, key, call, json.RawMessage(outcome)); err != nil {
					return err
				}
				_, err := fmt.Fprintln(std.out, "settled")
				return err
			})
		}
	},
}

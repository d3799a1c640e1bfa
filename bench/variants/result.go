package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"

	"github.com/google/uuid"
)

func asType(name string) []edit {
	return []edit{{"result       bytea", "result       " + name}}
}

func storage(as string) []string {
	return []string{"alter table idempotency_keys alter column result set storage " + as}
}

func compression(as string) []string {
	return []string{"alter table idempotency_keys alter column result set compression " + as}
}

// result: the type, the storage and the compression of what is replayed.
func (l *lab) result(ctx context.Context) error {
	variants := []variant{
		{name: "bytea (as it is)"},
		{name: "text", table: asType("text")},
		{name: "jsonb", table: asType("jsonb")},
		{name: "bytea, main", extra: storage("main")},
		{name: "bytea, external: not compressed", extra: storage("external")},
	}
	lz4, err := l.number(ctx, "select count(*) from pg_settings where name = 'default_toast_compression' and 'lz4' = any(enumvals)")
	if err != nil {
		return err
	}
	if lz4 > 0 {
		variants = append(variants,
			variant{name: "bytea, lz4", extra: compression("lz4")},
			variant{name: "jsonb, lz4", table: asType("jsonb"), extra: compression("lz4")})
	} else {
		l.printf("\nThis server was built without lz4.\n")
	}
	for _, size := range []int{300, 4_000, 64_000} {
		if err := l.resultOf(ctx, size, variants); err != nil {
			return fmt.Errorf("%d bytes: %w", size, err)
		}
	}
	return nil
}

func (l *lab) resultOf(ctx context.Context, size int, variants []variant) error {
	all, err := l.sites(ctx, way{async: true}, variants...)
	if err != nil {
		return err
	}
	defer l.leave(all)
	var results [][]byte
	for range 20 {
		results = append(results, document(size))
	}
	const rounds = 10
	per := 100
	if size > 10_000 {
		per = 30
	}
	if err := l.exec(ctx, "checkpoint"); err != nil {
		return err
	}
	made := map[string][]*request{}
	firsts, err := l.turns(ctx, all, rounds, per, 1, func(ctx context.Context, s *site) error {
		r := s.request(1000, results[rand.IntN(len(results))])
		made[s.schema] = append(made[s.schema], r)
		return s.alone(ctx, r)
	})
	if err != nil {
		return err
	}
	replays, err := l.turns(ctx, all, rounds, per, 1, func(ctx context.Context, s *site) error {
		r := made[s.schema][rand.IntN(len(made[s.schema]))]
		var got []byte
		err := s.pool.QueryRow(ctx, "select result from idempotency_keys where id = $1 and scope = $2", r.id, r.scope).Scan(&got)
		if err == nil && len(got) < size/2 {
			err = fmt.Errorf("a result of %d bytes came back with %d", size, len(got))
		}
		return err
	})
	if err != nil {
		return err
	}
	t := newTable("result", "WAL B per call", "table B per row", "time of a call", "time to read it")
	for i, at := range firsts {
		b, err := l.bytesPerRow(ctx, at.site)
		if err != nil {
			return err
		}
		t.add(at.name, at.walPerOp(), grouped(b.heap), at.ratio(firsts[0]), replays[i].ratio(replays[0]))
	}
	l.show(fmt.Sprintf("Result of %s B of JSON (%s)", grouped(int64(size)), "on average "+grouped(averageSize(results))), t)
	return nil
}

func averageSize(results [][]byte) (n int64) {
	for _, r := range results {
		n += int64(len(r))
	}
	return n / int64(len(results))
}

// document is JSON as an API answers it: names that repeat, values that do not.
func document(size int) []byte {
	type item struct {
		ID, Object, Status, Currency string
		Amount                       int
		Created                      int
		Description                  string
		Metadata                     map[string]string
	}
	words := []string{"order", "of", "the", "customer", "delivered", "to", "store", "number", "with", "receipt", "invoice", "partly", "paid"}
	var items []item
	for {
		var text []byte
		for range 5 {
			text = append(append(text, words[rand.IntN(len(words))]...), ' ')
		}
		items = append(items, item{
			ID: uuid.NewString(), Object: "charge", Status: []string{"succeeded", "pending", "refused"}[rand.IntN(3)],
			Currency: "EUR", Amount: rand.IntN(100_000), Created: 1_790_000_000 + rand.IntN(10_000_000),
			Description: string(bytes.TrimSpace(text)), Metadata: map[string]string{"order": fmt.Sprint(rand.IntN(1 << 30))},
		})
		doc, err := json.Marshal(items)
		if err != nil {
			panic(err)
		}
		if len(doc) >= size {
			return slices.Clip(doc)
		}
	}
}

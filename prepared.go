package idempotency

import (
	"context"
	"crypto/sha256"
	"encoding/hex"

	"github.com/jackc/pgx/v5"
)

// maxPrepared is how many statements of calls in one round trip a connection keeps.
const maxPrepared = 200

// A named text is a statement with the name under which it is prepared.
//
// pgx itself throws every statement of a batch out of its cache when one of them fails,
// and here the guard fails for each duplicate: it would cost two round trips to prepare
// them again. pgx does not do so with statements that have a name.
type named struct{ name, sql string }

func newNamed(sql string) named {
	sum := sha256.Sum256([]byte(sql))
	return named{"idempotency_" + hex.EncodeToString(sum[:16]), sql}
}

// prepared are the names of a connection, with the time of their last use. They lie in
// what pgx has for such data of a connection, and end with it.
type prepared struct {
	uses map[string]uint64
	now  uint64
}

func preparedOn(conn *pgx.Conn) *prepared {
	data := conn.PgConn().CustomData()
	p, ok := data["idempotency"].(*prepared)
	if !ok {
		p = &prepared{uses: map[string]uint64{}}
		data["idempotency"] = p
	}
	return p
}

// prepared prepares what is not prepared yet, and returns what to send for a text: its name,
// or in the query exec modes that do not cache statements the text.
func (s *Store) prepared(ctx context.Context, conn *pgx.Conn, texts ...*named) (func(*named) string, error) {
	if !s.cachesStatements {
		return func(n *named) string { return n.sql }, nil
	}
	p := preparedOn(conn)
	for _, n := range texts {
		if _, err := conn.Prepare(ctx, n.name, n.sql); err != nil {
			return nil, err
		}
		p.now++
		p.uses[n.name] = p.now
	}
	for len(p.uses) > maxPrepared {
		if err := p.forgetOldest(ctx, conn); err != nil {
			return nil, err
		}
	}
	return func(n *named) string { return n.name }, nil
}

func (p *prepared) forgetOldest(ctx context.Context, conn *pgx.Conn) error {
	oldest, at := "", p.now+1
	for name, use := range p.uses {
		if use < at {
			oldest, at = name, use
		}
	}
	if err := conn.Deallocate(ctx, oldest); err != nil {
		return err
	}
	delete(p.uses, oldest)
	return nil
}

// forgetMissing is called with each error. If somebody has deallocated the statements
// (DISCARD ALL), pgx does not know, and would send their names for ever.
func forgetMissing(conn *pgx.Conn, err error) {
	if sqlState(err) != codeNoStatement {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), rollbackBound)
	defer cancel()
	p := preparedOn(conn)
	for name := range p.uses {
		if conn.Deallocate(ctx, name) != nil {
			return // the connection is lost
		}
		delete(p.uses, name)
	}
}

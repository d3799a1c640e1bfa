package idempotency

import (
	"context"
	"fmt"
	"strings"
	"unicode"

	"github.com/jackc/pgx/v5"
)

// An encoding is in which a connection says that it sends text (pgx sends UTF-8), and in
// which the database keeps it.
type encoding struct{ client, server string }

func encodingOf(conn *pgx.Conn) encoding {
	return encoding{conn.PgConn().ParameterStatus("client_encoding"), conn.PgConn().ParameterStatus("server_encoding")}
}

const encodingSQL = `select current_setting('client_encoding'::text), current_setting('server_encoding'::text)`

// converts: PostgreSQL makes other bytes of what is sent, or of what it sends. SQL_ASCII
// stands for bytes as they are.
func (e encoding) converts() bool {
	return e.client != e.server && e.client != "SQL_ASCII" && e.server != "SQL_ASCII"
}

// problemOf says why a text may not arrive as it is, or come back so, as the only one that
// becomes what is stored. Of the encodings that a database can have, EUC_JP alone makes one
// character of two: found by converting each character of the Basic Multilingual Plane to
// each of them. EUC_JIS_2004 takes control characters that it does not give back.
func (e encoding) problemOf(text string) string {
	switch {
	case !e.converts() || !beyondASCII(text):
	case e.client != "UTF8":
		return fmt.Sprintf("has characters beyond ASCII, and client_encoding is %s, where pgx sends UTF-8: PostgreSQL would convert it to another text, which can be that of another key: set client_encoding=UTF8 in the connection string of every program", e.client)
	case strings.ContainsFunc(text, func(r rune) bool { return r >= 0x80 && r <= 0x9f }):
		return fmt.Sprintf("has a control character (U+0080 to U+009F), and the database has the encoding %s, and not UTF8", e.server)
	case e.server == "EUC_JP" && strings.ContainsAny(text, "\u00a6\uffe4"):
		return "has U+00A6 or U+FFE4, which are one character in the database's encoding, EUC_JP"
	}
	return ""
}

func beyondASCII(text string) bool {
	for i := range len(text) {
		if text[i] > unicode.MaxASCII {
			return true
		}
	}
	return false
}

// checkSent is ErrInvalidKey if one of the texts among the arguments, which are parts of
// keys, cannot be sent through conn. It asks nobody, and costs nothing for ASCII.
func checkSent(conn *pgx.Conn, args ...any) error {
	for _, arg := range args {
		if text, ok := arg.(string); ok && beyondASCII(text) {
			if err := encodingOf(conn).check(text); err != nil {
				return err
			}
		}
	}
	return nil
}

func (e encoding) check(text string) error {
	if problem := e.problemOf(text); problem != "" {
		return fmt.Errorf("%w: Key.Scope or Key.ID %s", ErrInvalidKey, problem)
	}
	return nil
}

// checkSentIn is checkSent in a caller's transaction. One of database/sql does not show its
// connection, so that the server is asked, for a key beyond ASCII only.
func checkSentIn(ctx context.Context, tx pgx.Tx, args keyArgs) error {
	if conn := connOf(tx); conn != nil {
		return checkSent(conn, args.read()...)
	}
	id, scope := args[0].(string), args[1].(string)
	if !beyondASCII(id) && !beyondASCII(scope) {
		return nil
	}
	var e encoding
	if err := tx.QueryRow(ctx, encodingSQL).Scan(&e.client, &e.server); err != nil {
		return err
	}
	if err := e.check(scope); err != nil {
		return err
	}
	return e.check(id)
}

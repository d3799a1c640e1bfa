package demo

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/url"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// A server is a PostgreSQL on which databases can be made.
type server struct {
	url    string
	config *pgxpool.Config
}

// limit bounds what must not be interrupted: to make and to drop a database.
const limit = 20 * time.Second

func parseServer(url string) (server, error) {
	if url == "" {
		return server{}, errors.New("DATABASE_URL is not set: run make demo, or set DATABASE_URL to a server on which you may create databases")
	}
	cfg, err := pgxpool.ParseConfig(url)
	if err != nil {
		return server{}, fmt.Errorf("DATABASE_URL: %w", err)
	}
	return server{url, cfg}, nil
}

// create makes a database for this run alone, so that the demo finds the same
// start on any server and touches nothing that is there.
func (s server) create(ctx context.Context) (name string, err error) {
	conn, err := s.reach(ctx)
	if err != nil {
		return "", err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	// Not interrupted: a database that is half made cannot be dropped.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), limit)
	defer cancel()
	name = fmt.Sprintf("payments_demo_%08x", rand.Uint32())
	if _, err := conn.Exec(ctx, "create database "+name+" template template0"); err != nil {
		return "", fmt.Errorf("creating a database for the demo: %w", err)
	}
	return name, nil
}

func (s server) reach(ctx context.Context) (*pgx.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	conn, err := pgx.ConnectConfig(ctx, s.config.ConnConfig)
	if err != nil {
		return nil, fmt.Errorf("cannot reach the server of DATABASE_URL (make demo starts one when it is not set): %w", err)
	}
	return conn, nil
}

// drop takes no context, because it has to happen after Ctrl-C, too.
func (s server) drop(name string) error {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	conn, err := pgx.ConnectConfig(ctx, s.config.ConnConfig)
	if err == nil {
		defer conn.Close(ctx)
		// force: a process that has just been killed may still be connected.
		_, err = conn.Exec(ctx, "drop database "+name+" with (force)")
	}
	if err != nil {
		return fmt.Errorf("the database %s is left behind: %w", name, err)
	}
	return nil
}

func (s server) open(ctx context.Context, database string) (*pgxpool.Pool, error) {
	cfg := s.config.Copy()
	cfg.ConnConfig.Database = database
	return pgxpool.NewWithConfig(ctx, cfg)
}

// urlFor is the DATABASE_URL of a process of the service. The application's name
// says in pg_stat_activity whose a session is.
func (s server) urlFor(database, application string) string {
	u, err := url.Parse(s.url)
	if err != nil || u.Scheme == "" { // keywords and values, of which the last wins
		return fmt.Sprintf("%s dbname=%s application_name=%s", s.url, database, application)
	}
	query := u.Query()
	query.Del("dbname")
	query.Del("database")
	query.Set("application_name", application)
	u.Path, u.RawQuery = "/"+database, query.Encode()
	return u.String()
}

// makeTables makes what the demo itself writes down: what customers want, what
// they were told, and which answers the proxy has lost. Then the report is a few
// joins.
func (d *demo) makeTables(ctx context.Context) error {
	const sql = `
create schema demo;
create table demo.orders (run text, key text primary key, account text, reference text, amount bigint);
create table demo.answers (key text, status int, replayed bool, body text);
create table demo.losses (key text)`
	if _, err := d.pool.Exec(ctx, sql); err != nil {
		return fmt.Errorf("making the tables of the demo: %w", err)
	}
	return nil
}

// copyTo writes down what has been collected.
func copyTo[T any](ctx context.Context, d *demo, table string, columns []string, list []T, row func(T) []any) error {
	_, err := d.pool.CopyFrom(ctx, pgx.Identifier{"demo", table}, columns,
		pgx.CopyFromSlice(len(list), func(i int) ([]any, error) { return row(list[i]), nil }))
	if err != nil {
		return fmt.Errorf("writing down %s: %w", table, err)
	}
	return nil
}

func (d *demo) keepOrders(ctx context.Context, run string, orders []order) error {
	return copyTo(ctx, d, "orders", []string{"run", "key", "account", "reference", "amount"}, orders,
		func(o order) []any { return []any{run, o.Key, o.Account, o.Reference, o.Amount} })
}

func (d *demo) keepAnswers(ctx context.Context, answers []answer) error {
	return copyTo(ctx, d, "answers", []string{"key", "status", "replayed", "body"}, answers,
		func(a answer) []any { return []any{a.Key, a.Status, a.Replayed, a.Body} })
}

func (d *demo) keepLosses(ctx context.Context, keys []string) error {
	return copyTo(ctx, d, "losses", []string{"key"}, keys, func(key string) []any { return []any{key} })
}

package ormtest

import (
	"context"
	"database/sql"
	"errors"
	"strings"
	"testing"

	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/idemsql"
	"gorm.io/driver/postgres"
	"gorm.io/gorm"
	"gorm.io/gorm/logger"
)

// within is db in the transaction tx: what a repository gets as its *gorm.DB.
func within(ctx context.Context, db *gorm.DB, tx *sql.Tx) *gorm.DB {
	session := db.Session(&gorm.Session{NewDB: true, Context: ctx}) // without the Context, db itself would be changed
	session.Statement.ConnPool = tx
	return session
}

func chargeWithGORM(ctx context.Context, store *idempotency.Store, key idempotency.Key, db *gorm.DB) (Charge, bool, error) {
	return idempotency.Do(ctx, store, key, idemsql.Func(func(ctx context.Context, tx *sql.Tx) (Charge, error) {
		charge := Charge{Account: "alice", Cents: 1000}
		err := within(ctx, db, tx).Create(&charge).Error
		return charge, err
	}))
}

// gormDB is what a program has anyway, once.
func (b *bundle) gormDB(cfg gorm.Config) *gorm.DB {
	b.Helper()
	cfg.Logger = logger.Discard
	db, err := gorm.Open(postgres.New(postgres.Config{Conn: b.db}), &cfg)
	if err != nil {
		b.Fatal(err)
	}
	return db
}

func TestGORM(t *testing.T) {
	t.Parallel()
	for name, cfg := range map[string]gorm.Config{
		"default":                {},
		"PrepareStmt":            {PrepareStmt: true},
		"SkipDefaultTransaction": {SkipDefaultTransaction: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			db := b.gormDB(cfg)
			first, _, err := chargeWithGORM(t.Context(), b.store, b.key, db)
			if err != nil {
				t.Fatal(err)
			}
			if again, replayed, err := chargeWithGORM(t.Context(), b.store, b.key, db); again != first || !replayed || err != nil {
				t.Errorf("%+v, replayed %v, %v; want %+v again", again, replayed, err, first)
			}
			b.charges(1)
			b.key.ID = "order-2"
			b.exec("truncate charges")
			b.once(func(ctx context.Context, tx *sql.Tx) (Charge, error) {
				c := Charge{Account: "alice", Cents: 1000}
				err := within(ctx, db, tx).Create(&c).Error
				return c, err
			})
			// db itself is still on the pool.
			if err := db.WithContext(t.Context()).Create(&Charge{Account: "bob"}).Error; err != nil {
				t.Error(err)
			}
			b.charges(2)
		})
	}
}

func TestGORMOpenedOnTheTransaction(t *testing.T) {
	t.Parallel()
	setup(t).once(func(ctx context.Context, tx *sql.Tx) (Charge, error) {
		db, err := gorm.Open(postgres.New(postgres.Config{Conn: tx}), &gorm.Config{})
		if err != nil {
			return Charge{}, err
		}
		c := Charge{Account: "alice", Cents: 1000}
		err = db.WithContext(ctx).Create(&c).Error
		return c, err
	})
}

func TestNestedTransactionOfGORMIsASavepoint(t *testing.T) {
	t.Parallel()
	for name, cfg := range map[string]gorm.Config{"default": {}, "PrepareStmt": {PrepareStmt: true}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			db := b.gormDB(cfg)
			b.once(func(ctx context.Context, tx *sql.Tx) (Charge, error) {
				g := within(ctx, db, tx)
				err := g.Transaction(func(g *gorm.DB) error {
					return errors.Join(g.Create(&Charge{Account: "undone"}).Error, errUndo)
				})
				if !errors.Is(err, errUndo) {
					return Charge{}, err
				}
				c := Charge{Account: "alice", Cents: 1000}
				err = g.Transaction(func(g *gorm.DB) error { return g.Create(&c).Error })
				return c, err
			})
		})
	}
}

// GORM reads its answers in many ways; all of them are on the transaction.
func TestQueriesOfGORMSeeWhatTheFunctionHasWritten(t *testing.T) {
	t.Parallel()
	b := setup(t)
	db := b.gormDB(gorm.Config{})
	b.once(func(ctx context.Context, tx *sql.Tx) (Charge, error) {
		g := within(ctx, db, tx)
		c := Charge{Account: "alice", Cents: 999}
		if err := g.Create(&c).Error; err != nil {
			return c, err
		}
		var n int64
		var maps []map[string]any
		var again Charge
		err := errors.Join(
			g.Model(&Charge{}).Where("account = ?", "alice").Count(&n).Error,
			g.Model(&Charge{}).Where("cents = @cents", sql.Named("cents", 999)).Find(&maps).Error,
			g.Model(&c).Update("cents", gorm.Expr("cents + ?", 1)).Error,
			g.First(&again, c.ID).Error,
			g.Exec("select 1").Error,
		)
		rows, rowsErr := g.Model(&Charge{}).Rows()
		if rowsErr != nil {
			return c, rowsErr
		}
		defer rows.Close()
		if n != 1 || len(maps) != 1 || !rows.Next() {
			t.Errorf("%d counted, %v, %v", n, maps, rows.Err())
		}
		return again, err
	})
}

func TestGORMCannotCommitOrRollBackOurTransaction(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(*gorm.DB) error{
		"Commit":   func(g *gorm.DB) error { return g.Commit().Error },
		"Rollback": func(g *gorm.DB) error { return g.Rollback().Error },
		"Begin":    func(g *gorm.DB) error { return g.Begin().Error },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			db := b.gormDB(gorm.Config{})
			_, _, err := b.do(func(ctx context.Context, tx *sql.Tx) (Charge, error) {
				g := within(ctx, db, tx)
				c := Charge{Account: "alice", Cents: 1000}
				if err := g.Create(&c).Error; err != nil {
					return c, err
				}
				if err := end(g); err == nil {
					t.Error("it was allowed")
				}
				return c, errUndo
			})
			if !errors.Is(err, errUndo) {
				t.Error(err)
			}
			b.charges(0)
		})
	}
}

// The trap of a model that outlives a run: it keeps the id that was rolled back.
func TestModelDeclaredOutsideTheFunctionKeepsTheIDOfTheRunBefore(t *testing.T) {
	t.Parallel()
	b := setup(t)
	db := b.gormDB(gorm.Config{})
	outside := Charge{Account: "alice", Cents: 1000}
	var ids []int64
	_, _, err := b.do(func(ctx context.Context, tx *sql.Tx) (Charge, error) {
		g := within(ctx, db, tx)
		ids = append(ids, outside.ID)
		if err := g.Create(&outside).Error; err != nil {
			return outside, err
		}
		if len(ids) == 1 {
			return outside, g.Exec("do $$ begin raise exception using errcode = '40001'; end $$").Error
		}
		return outside, nil
	})
	if len(ids) != 2 || ids[0] != 0 || ids[1] == 0 {
		t.Errorf("the runs began with the ids %v, %v", ids, err)
	}
	b.charges(0) // "generated always" has refused the id
}

// The trap of a session with PrepareStmt inside the function: GORM keeps its
// statement, which is the transaction's, for the whole program.
func TestSessionWithPrepareStmtInsideSpoilsTheStatementsOutside(t *testing.T) {
	t.Parallel()
	b := setup(t)
	db := b.gormDB(gorm.Config{})
	_, _, err := b.do(func(ctx context.Context, tx *sql.Tx) (Charge, error) {
		c := Charge{Account: "alice", Cents: 1000}
		err := within(ctx, db, tx).Session(&gorm.Session{PrepareStmt: true}).Create(&c).Error
		return c, err
	})
	if err != nil {
		t.Fatal(err)
	}
	if db.Session(&gorm.Session{PrepareStmt: true}).Create(&Charge{Account: "bob"}).Error == nil {
		t.Error("it works now: docs/sql.md says otherwise")
	}
}

// The trap of a session without a Context: it shares its Statement with db.
func TestSessionWithoutAContextLeadsTheWholeProgramIntoTheTransaction(t *testing.T) {
	t.Parallel()
	b := setup(t)
	db := b.gormDB(gorm.Config{})
	_, _, err := b.do(func(_ context.Context, tx *sql.Tx) (Charge, error) {
		session := db.Session(&gorm.Session{NewDB: true})
		session.Statement.ConnPool = tx
		return Charge{}, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Create(&Charge{Account: "bob"}).Error; !errors.Is(err, sql.ErrTxDone) {
		t.Errorf("%v; docs/sql.md says otherwise", err)
	}
}

func TestStatementOfAnotherDBIsRefused(t *testing.T) {
	t.Parallel()
	b := setup(t)
	stmt, err := b.db.PrepareContext(t.Context(), "insert into charges (account, cents) values ($1, $2)")
	if err != nil {
		t.Fatal(err)
	}
	defer stmt.Close()
	_, _, err = b.do(func(ctx context.Context, tx *sql.Tx) (Charge, error) {
		_, err := tx.StmtContext(ctx, stmt).ExecContext(ctx, "alice", 1)
		return Charge{}, err
	})
	if err == nil || !strings.Contains(err.Error(), "statement from different database used") {
		t.Errorf("got %v", err)
	}
	b.charges(0)
}

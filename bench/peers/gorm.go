package peers

import (
	"context"
	"errors"
	"time"

	"gorm.io/driver/postgres"
	"gorm.io/gorm"
	"gorm.io/gorm/clause"
	"gorm.io/gorm/logger"
)

// GORMUpsert is the name of the pattern as people write it with GORM.
const GORMUpsert = "GORM upsert"

func init() {
	register(Peer{
		Name:    GORMUpsert,
		About:   "Written by hand with GORM v1.31.2 on pgx, in one db.Transaction: Create of the key with OnConflict DoNothing, Create of the charge, Updates of the key with the answer. A duplicate waits on the unique index.",
		Prepare: prepareHandWritten,
		Open:    openGORM,
	})
}

// As its author would review it:
//
//   - The table and the five round trips of the pattern written by hand with pgx.
//   - Statements are prepared once a connection, by pgx underneath, for which
//     GORM's PrepareStmt has nothing to add.
//   - The pool keeps all of its connections, as pgx's does; database/sql would keep
//     two.

type gormKey struct {
	ID          string `gorm:"primaryKey"`
	Scope       string `gorm:"primaryKey"`
	Fingerprint []byte
	Answer      []byte
	ExpiresAt   time.Time
}

func (gormKey) TableName() string { return "hand_keys" }

type gormCharge struct {
	ID     int64 `gorm:"primaryKey"`
	Key    string
	Amount int64
}

func (gormCharge) TableName() string { return "charges" }

type gormClient struct{ db *gorm.DB }

func openGORM(_ context.Context, env Env) (Client, error) {
	db, err := gorm.Open(postgres.Open(env.DSN), &gorm.Config{Logger: logger.Discard})
	if err != nil {
		return nil, err
	}
	pool, err := db.DB()
	if err != nil {
		return nil, err
	}
	pool.SetMaxOpenConns(int(env.MaxConns))
	pool.SetMaxIdleConns(int(env.MaxConns))
	return gormClient{db}, nil
}

func (g gormClient) Close() {
	if pool, err := g.db.DB(); err == nil {
		pool.Close()
	}
}

func (g gormClient) Do(ctx context.Context, call *Call) (answer string, err error) {
	err = g.db.WithContext(ctx).Transaction(func(tx *gorm.DB) error {
		key := gormKey{ID: call.ID, Scope: call.Scope, Fingerprint: fingerprint(call), ExpiresAt: time.Now().Add(24 * time.Hour)}
		claim := tx.Clauses(clause.OnConflict{DoNothing: true}).Create(&key)
		switch {
		case claim.Error != nil:
			return claim.Error
		case claim.RowsAffected == 0:
			answer, err = gormAnswer(tx, call)
			return err
		}
		charge := gormCharge{Key: call.ID, Amount: call.Amount}
		if err := tx.Create(&charge).Error; err != nil {
			return err
		}
		call.Written(ctx)
		answer = call.Answer(charge.ID)
		return tx.Model(&key).Update("answer", []byte(answer)).Error
	})
	return answer, err
}

// gormAnswer reads the recorded answer, if it is of the same request.
func gormAnswer(tx *gorm.DB, call *Call) (string, error) {
	var found gormKey
	err := tx.Where("id = ? and scope = ?", call.ID, call.Scope).Take(&found).Error
	switch {
	case errors.Is(err, gorm.ErrRecordNotFound):
		return "", ErrInProgress // its row was deleted just now
	case err == nil && string(found.Fingerprint) != string(fingerprint(call)):
		return "", errors.New("the key was used for another request")
	}
	return string(found.Answer), err
}

package peers

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/redis/go-redis/v9"
)

// Redis is the name of the usual recipe with it.
const Redis = "Redis lock and response"

func init() {
	register(Peer{
		Name:  Redis,
		About: "The usual recipe with go-redis v9.23 and a redis-server: SET NX GET with an expiry of 10 s as the lock, the business transaction, SET of the response for 24 h. A failed transaction frees the lock at once.",
		Redis: true,
		Open:  openRedis,
	})
}

// As one who recommends this recipe would review it:
//
//   - One SET with NX and GET (Redis 7.0) claims the key or reads what is there:
//     one round trip, where SET NX and then GET would be two for a replay.
//   - The lock has an owner's token, and is freed by a script that compares it, so
//     that a late owner does not free the lock of another.
//   - The lock's expiry is longer than any business transaction here, and short
//     enough for a key whose owner was killed to be usable again. Whatever it is, a
//     retry after that executes once more: Redis cannot know that PostgreSQL has
//     committed. A longer expiry only makes the client wait longer for it.
//   - The response is stored unconditionally: what is committed is to be replayed,
//     also where the lock has expired meanwhile.
//   - redis-server keeps an append-only file, synced once a second. That loses
//     responses only when its machine dies, which this benchmark does not do;
//     appendfsync always would add an fsync to each of the two writes.
const (
	redisLock     = 10 * time.Second
	redisResponse = 24 * time.Hour
	redisLocked   = "locked:"
	redisDone     = "done:"
)

var redisUnlock = redis.NewScript(`if redis.call("get", KEYS[1]) == ARGV[1] then return redis.call("del", KEYS[1]) end return 0`)

type redisRecipe struct {
	pool  *pgxpool.Pool
	redis *redis.Client
}

func openRedis(ctx context.Context, env Env) (Client, error) {
	opts := &redis.Options{Network: "tcp", Addr: env.Redis, PoolSize: int(env.MaxConns)}
	if strings.HasPrefix(env.Redis, "/") {
		opts.Network = "unix"
	}
	client := redis.NewClient(opts)
	if err := client.Ping(ctx).Err(); err != nil {
		return nil, errors.Join(err, client.Close())
	}
	pool, err := env.Pool(ctx)
	if err != nil {
		return nil, errors.Join(err, client.Close())
	}
	return redisRecipe{pool, client}, nil
}

func (r redisRecipe) Close() {
	r.pool.Close()
	r.redis.Close()
}

func (r redisRecipe) Do(ctx context.Context, call *Call) (answer string, err error) {
	key := "idempotency:" + call.Scope + ":" + call.ID
	lock := redisLocked + uuid.NewString()
	found, err := r.redis.SetArgs(ctx, key, lock, redis.SetArgs{Mode: "NX", Get: true, TTL: redisLock}).Result()
	switch {
	case err == nil:
		return redisAnswer(call, found)
	case !errors.Is(err, redis.Nil):
		return "", err
	}
	err = pgx.BeginFunc(ctx, r.pool, func(tx pgx.Tx) error {
		answer, err = call.Write(ctx, tx)
		return err
	})
	if err != nil {
		return "", errors.Join(err, redisUnlock.Run(context.WithoutCancel(ctx), r.redis, []string{key}, lock).Err())
	}
	call.Written(ctx)
	value := redisDone + string(fingerprint(call)) + answer
	return answer, r.redis.Set(context.WithoutCancel(ctx), key, value, redisResponse).Err()
}

// redisAnswer is the recorded answer, if it is of the same request.
func redisAnswer(call *Call, found string) (string, error) {
	recorded, done := strings.CutPrefix(found, redisDone)
	if !done {
		return "", fmt.Errorf("%w: the lock is taken", ErrInProgress)
	}
	answer, same := strings.CutPrefix(recorded, string(fingerprint(call)))
	if !same {
		return "", errors.New("the key was used for another request")
	}
	return answer, nil
}

package routertest

import (
	"maps"
	"net/http"

	"github.com/gin-gonic/gin"
	"github.com/labstack/echo/v4"
	"github.com/pgidem/idempotency/idemhttp"
)

// ginOnce puts a Middleware around the handler of one route. Each run has a
// Context of its own: gin's Next runs what follows once, and a Context writes
// where it was made to write. (CreateTestContextOnly is the only function of gin
// that makes one.)
func ginOnce(e *gin.Engine, idem *idemhttp.Middleware, handle gin.HandlerFunc) gin.HandlerFunc {
	return func(c *gin.Context) {
		idem.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			run := gin.CreateTestContextOnly(w, e)
			run.Request, run.Params, run.Keys = r, c.Params, maps.Clone(c.Keys)
			handle(run)
			run.Writer.WriteHeaderNow()
		})).ServeHTTP(c.Writer, c.Request)
	}
}

// echoOnce puts a Middleware around one route, or all of them. It answers errors
// inside: by itself echo does so outside, after an empty 200 of the handler has
// been committed.
func echoOnce(idem *idemhttp.Middleware) echo.MiddlewareFunc {
	return func(next echo.HandlerFunc) echo.HandlerFunc {
		return func(c echo.Context) error {
			request, response := c.Request(), c.Response()
			defer func() { c.SetRequest(request); c.SetResponse(response) }()
			return echo.WrapMiddleware(idem.Handler)(func(c echo.Context) error {
				if err := next(c); err != nil {
					c.Error(err)
				}
				return nil
			})(c)
		}
	}
}

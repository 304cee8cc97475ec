-- The name of an error list, made on first use, by which a folder knows which list it drains.
--
-- KEYS[1]  STRING  source
-- ARGV     a random name, for a list that has none yet
-- Returns  the list's name
--
-- Safe to repeat: a name stays. DEL of what is not there comes first, because Redis refuses only a
-- script's first write when it is out of memory, and draining is what frees some.

local wrong = expect(KEYS[1], 'string')
if wrong then return wrong end
local name = redis.call('GET', KEYS[1])
if name then return name end
redis.call('DEL', KEYS[1])
redis.call('SET', KEYS[1], ARGV[1])
return ARGV[1]

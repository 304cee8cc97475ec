-- Begin or go on as a drainer: make it findable, and shut out an earlier process of the same drainer.
--
-- KEYS[1]  SET   drainers  every drainer that may own a spool
-- KEYS[2]  HASH  drainer   see keys.py
-- ARGV     drainer id, run (a token of this process), kind, host, place
-- Returns  1
--
-- Safe to repeat: it overwrites. Types are checked first; HDEL comes first because Redis refuses only a
-- script's first write when it is out of memory, and draining is what frees some.

local wrong = expect(KEYS[1], 'set') or expect(KEYS[2], 'hash')
if wrong then return wrong end

redis.call('HDEL', KEYS[2], 'last', 'moved')
redis.call('SADD', KEYS[1], ARGV[1])
redis.call('HSET', KEYS[2], 'run', ARGV[2], 'kind', ARGV[3], 'host', ARGV[4], 'place', ARGV[5],
  'seen', string.format('%.0f', clock()))
return 1

"""One table across methods: the same network, data and budget of training, many ways to prune.

`settings` says what is compared, `tasks` how a network is retrained and judged, `ways` how it is
made smaller, `study` carries it out, `results` makes tables of it.
"""

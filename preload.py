"""Command line flags, read before the WebUI starts."""


def preload(parser):
    parser.add_argument("--ipadapter-dir", type=str, default=None, help="a further folder with IP-Adapter files")

from rcnet.cli import main

main()
